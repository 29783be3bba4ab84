"""Ray and Dask on loopback: the records of the serial run, workers that die, a running cluster."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from bench_runs import ADDRESS, GRID, executor, rows_on_disk, table, writers
from prunus.bench import read_records, run
from prunus.bench.executors import make_executor

ENGINES = {"ray": "ray", "dask": "distributed"}
engines = pytest.mark.parametrize("engine", list(ENGINES))


@pytest.fixture(autouse=True)
def installed(request):
    engine = request.node.callspec.params.get("engine") if hasattr(request.node, "callspec") else ""
    if engine:
        pytest.importorskip(ENGINES[engine], reason=f"the extra {engine} is not installed")


@contextmanager
def one_worker_killed(out):
    """Kill a worker while a cell runs; the list says which."""
    killed = []

    def kill():
        while rows_on_disk(out) < 4 or not writers(out):
            time.sleep(0.01)
        time.sleep(random.Random(0).random() * 0.03)
        killed.append(writers(out)[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield killed
    thread.join(1)


@engines
def test_a_cluster_gives_the_serial_records_though_a_worker_dies(tmp_path, engine, capfd):
    grid = {**GRID, "tasks": ["bench_tiny:lazy"], "recipes": ["magnitude", "wanda+ls"]}
    out = tmp_path / "cluster"
    out.mkdir()
    with one_worker_killed(out) as killed:
        done = run(grid, out=out, cache=tmp_path / "cache", executor=executor(engine))
    assert killed
    assert (done.done, done.failed) == (2 * (8 + 4 + 4), 0)
    assert len(list(out.glob("*.jsonl"))) >= 3  # two writers, and the one in the dead one's place
    run(grid, out=tmp_path / "serial", cache=tmp_path / "cache2")
    assert table(out) == table(tmp_path / "serial")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@engines
def test_a_cell_that_kills_its_worker_fails_alone(tmp_path, engine):
    grid = {**GRID, "tasks": ["bench_tiny:deadly"], "recipes": ["magnitude"], "densities": [0.5],
            "seeds": 1, "without": ["random", "small-dense"]}  # fmt: skip
    done = run(grid, out=tmp_path / "r", cache=tmp_path / "c", executor=executor(engine, 1),
               retries=1)  # fmt: skip
    assert (done.done, done.failed, done.lost) == (1, 1, 2)
    failed = next(r for r in read_records(tmp_path / "r").rows if r.status == "failed")
    assert failed.schedule == "retrain"
    assert failed.traceback.startswith("The worker process died 2 times.")


@contextmanager
def running(engine, folder):
    """A cluster of two workers in processes of its own; its address."""
    tools = os.path.dirname(sys.executable)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if engine == "ray":
        subprocess.run(
            [f"{tools}/ray", "start", "--head", f"--node-ip-address={ADDRESS}", "--port=6399",
             "--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000",
             "--disable-usage-stats"],
            check=True, **quiet,
        )  # fmt: skip
        try:
            yield f"{ADDRESS}:6399"
        finally:
            subprocess.run([f"{tools}/ray", "stop", "--force"], check=True, **quiet)
        return
    file = folder / "scheduler.json"
    common = (f"--scheduler-file={file}", "--no-dashboard")
    started = [
        subprocess.Popen([f"{tools}/dask", *words, *common], **quiet)
        for words in (("scheduler", "--host=127.0.0.1", "--port=0"),
                      ("worker", "--nworkers=2", "--nthreads=1"))
    ]  # fmt: skip
    try:
        limit = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < limit
            time.sleep(0.1)
        import json

        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


@pytest.mark.slow
@engines
def test_a_running_cluster_is_used_and_left_running(tmp_path, engine):
    grid = {**GRID, "recipes": ["magnitude"], "seeds": 1}
    with running(engine, tmp_path) as address:
        for i in range(2):
            where = {"out": tmp_path / f"r{i}", "cache": tmp_path / "cache", "address": address}
            done = run(grid, executor=engine, **where)
            assert (done.failed, done.lost, done.done) == (0, 0, len(done.cells))
    run(grid, out=tmp_path / "serial", cache=tmp_path / "cache2")
    assert table(tmp_path / "r0") == table(tmp_path / "r1") == table(tmp_path / "serial")


@pytest.mark.slow
@engines
def test_no_cluster_at_an_address_is_one_line(engine):
    address = {"ray": f"{ADDRESS}:6398", "dask": "tcp://127.0.0.1:6398"}[engine]
    with pytest.raises(OSError, match=f"No {engine.capitalize()} cluster answers") as caught:
        make_executor(engine, address=address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ray", "distributed"])
def test_a_missing_engine_names_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    extra = {"ray": "ray", "distributed": "dask"}[name]
    with pytest.raises(ImportError, match=rf"{name} is not installed.*'prunus\[{extra}\]'"):
        run(GRID, out=tmp_path / "r", cache=tmp_path / "c", executor=extra)
