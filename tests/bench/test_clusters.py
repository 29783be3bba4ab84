"""Ray and Dask on loopback: the records of the serial run, workers that die, a running cluster."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from bench_runs import ADDRESS, GRID, Gate, environment, executor, rows_on_disk, table, writers
from prunus.bench import read_records, run
from prunus.bench.grid.engines import make_executor

ENGINES = {"ray": "ray", "dask": "distributed"}
engines = pytest.mark.parametrize("engine", list(ENGINES))


@pytest.fixture(autouse=True)
def installed(request):
    engine = request.node.callspec.params.get("engine") if hasattr(request.node, "callspec") else ""
    if engine:
        pytest.importorskip(ENGINES[engine], reason=f"the extra {engine} is not installed")


@contextmanager
def one_worker_killed(out, monkeypatch):
    """Kill a worker while a cell runs; the list says which."""
    killed = []
    over = threading.Event()
    gate = Gate(out)
    gate.allow(4)
    monkeypatch.setenv("PRUNUS_TEST_GATE", str(gate.path))

    def kill():
        try:
            while rows_on_disk(out) < 4 or not (alive := writers(out)):
                if over.wait(0.01):
                    return
            time.sleep(random.Random(0).random() * 0.03)
            os.kill(alive[0], signal.SIGKILL)
            killed.append(alive[0])
        finally:
            gate.open()  # or a fault here would hold the cells for ever

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()  # or it would watch the folder for as long as the tests run
        thread.join(10)


@engines
def test_a_cluster_gives_the_serial_records_though_a_worker_dies(
    tmp_path, engine, capfd, monkeypatch
):
    grid = {**GRID, "tasks": ["bench_tiny:lazy"], "recipes": ["magnitude", "wanda+ls"], "seeds": 1}
    out = tmp_path / "cluster"
    out.mkdir()
    with one_worker_killed(out, monkeypatch) as killed:
        done = run(
            grid, out=out, cache=tmp_path / "cache", executor=executor(engine), progress=False
        )
    assert killed
    assert (done.done, done.failed) == (8 + 4 + 4, 0)
    # The dead worker's file and another's; a third where both had begun when the one died.
    assert len(list(out.glob("*.jsonl"))) >= 2
    monkeypatch.delenv("PRUNUS_TEST_GATE")
    run(grid, out=tmp_path / "serial", cache=tmp_path / "cache2", progress=False)
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
    file = folder / "scheduler.json"
    common = (f"--scheduler-file={file}", "--no-dashboard")
    commands = {
        "ray": [
            ("ray", "start", "--head", f"--node-ip-address={ADDRESS}", "--port=6399", "--block",
             "--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000",
             "--disable-usage-stats"),
        ],
        "dask": [
            ("dask", "scheduler", "--host=127.0.0.1", "--port=0", *common),
            ("dask", "worker", "--nworkers=2", "--nthreads=1", *common),
        ],
    }[engine]  # fmt: skip
    log = folder / "log"
    with log.open("w") as said:
        told = {"stdout": said, "stderr": said, "env": environment()}
        started = [subprocess.Popen([f"{tools}/{cmd}", *rest], **told) for cmd, *rest in commands]
    try:
        limit = time.monotonic() + 60
        while not (file.exists() or "Ray runtime started" in log.read_text()):
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.1)
        yield f"{ADDRESS}:6399" if engine == "ray" else json.loads(file.read_text())["address"]
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


INTERRUPTED = """
import json, sys
from bench_runs import executor
from prunus.bench import run
if __name__ == "__main__":
    grid, out, cache, engine = json.loads(sys.argv[1]), *sys.argv[2:]
    try:
        run(grid, out=out, cache=cache, executor=executor(engine))
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.slow
@engines
def test_an_interruption_is_quiet_and_leaves_no_process(tmp_path, engine):
    grid = {**GRID, "tasks": ["bench_tiny:lazy"], "seeds": 10}
    script, out = tmp_path / "script.py", tmp_path / "records"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps(grid), str(out), str(tmp_path / "cache"), engine],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=environment(),
    )  # fmt: skip
    limit = time.monotonic() + 120
    while rows_on_disk(out) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, "no three records within 120 s"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=60)[0] == "interrupted\n"
    assert writers(out) == []
    table(out)  # whole lines, no cell twice


CLIENT = """
import json, sys
from prunus.bench import run
grid, folder, engine, address, name = json.loads(sys.argv[1]), *sys.argv[2:]
done = run(grid, out=f"{folder}/{name}", cache=f"{folder}/cache", executor=engine, address=address)
assert (done.failed, done.lost, done.ran, done.done) == (0, 0, len(done.cells), len(done.cells))
"""


@pytest.mark.slow
@engines
def test_a_running_cluster_is_used_and_left_running(tmp_path, engine):
    grid = {**GRID, "recipes": ["magnitude"], "seeds": 1}
    script = tmp_path / "script.py"
    script.write_text(CLIENT)
    command = [sys.executable, str(script), json.dumps(grid), str(tmp_path), engine]
    with running(engine, tmp_path) as address:
        for i in range(2):
            words = [*command, address, f"r{i}"]
            subprocess.run(words, env=environment(), check=True, timeout=120)
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


@pytest.mark.parametrize(
    ("version", "mode", "said"),
    [
        ("2.30.0", None, "Ray 2.30.0 knows no tokens"),
        ("2.60.0", "disabled", "RAY_AUTH_MODE switches its tokens off"),
        ("2.52.0", None, None),
        ("3.0.0", "token", None),
    ],
)
def test_a_ray_without_tokens_is_not_started(version, mode, said, monkeypatch):
    from prunus.bench.grid.clusters import _check_token

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if said is None:
        _check_token(version)
        return
    with pytest.raises(
        ValueError, match=f"Ray listens on all addresses of this machine, and {said}"
    ):
        _check_token(version)
