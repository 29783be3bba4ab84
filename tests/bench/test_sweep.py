"""Sweeps: resume, failures, parts, full disks; two workers give the records of one."""

import json
import math
import os
import resource
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import threadpoolctl
import torch
from safetensors.torch import save_file

import bench_tiny
import prunus
from bench_runs import GRID, table
from prunus.bench import read_records, run
from prunus.bench.data import cache
from prunus.bench.data.cache import trainings
from prunus.bench.grid import work
from prunus.bench.grid.estimate import estimate
from prunus.bench.grid.sweep import finished, unique
from prunus.bench.grid.work import pinned
from prunus.cli.app import main


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The grid as this process runs it: the account, and the folder of records and networks."""
    folder = tmp_path_factory.mktemp("serial")
    return run(GRID, out=folder / "records", cache=folder / "cache"), folder


def rows_of_seed(seed, folder):
    return [row for row in table(folder / "records") if row[3] == seed]


def test_a_run_is_whole_and_a_second_one_does_nothing(serial, tmp_path):
    first, folder = serial
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    # 12 methods and, per place, a random mask; its layer counts; wanda without least squares
    assert (first.done, first.failed, first.lost) == (2 * (12 + 4 + 4 + 4), 0, 0)
    rows = table(tmp_path / "records")
    assert {row[0] for row in rows} == {cell.id for cell in first.cells}
    again = run(GRID, out=tmp_path / "records", cache=tmp_path / "cache")
    assert (again.ran, again.done) == (0, first.done)
    assert table(tmp_path / "records") == rows
    more = run({**GRID, "seeds": 3}, out=tmp_path / "records", cache=tmp_path / "cache")
    assert (more.ran, more.done) == (24, 72)


def test_records_tell_what_was_asked_and_met(serial):
    rows = read_records(serial[1] / "records").rows
    ids = {row.id: row for row in rows}
    for row in rows:
        assert row.status == "done"
        assert row.density == pytest.approx(row.density_asked, abs=0.01)
        assert (row.retrained is None) == (row.schedule == "none")
        assert row.seconds > 0
        assert row.peak_memory > 1e7
        assert row.versions["prunus"] == prunus.__version__
        assert row.host["threads"] == 1
    wanda = next(r for r in rows if r.recipe == "wanda+ls" and r.schedule == "retrain")
    partner = ids[wanda.extra["baselines"]["no-compensation"]]
    assert partner.recipe == "wanda"
    assert partner.extra["masks"] == wanda.extra["masks"]
    assert wanda.extra["baselines"]["no-retraining"] == wanda.id
    spread = next(r for r in rows if r.recipe == "magnitude-global")
    blind = ids[spread.extra["baselines"]["random-layers"]]
    assert blind.layer_density == spread.layer_density
    assert blind.extra["masks"] != spread.extra["masks"]
    plain = next(r for r in rows if r.recipe == "magnitude")
    assert ids[plain.extra["baselines"]["random"]].layer_density == plain.layer_density


def test_what_is_asked_for_is_measured(tmp_path):
    asked = {"certificate": 40, "latency": True, "top_k": 2, "seeds": 1, "densities": [0.5]}
    grid = {**GRID, **asked, "recipes": ["importance-node+ls", "magnitude"]}
    done = run({**grid, "without": []}, out=tmp_path / "records", cache=tmp_path / "cache")
    assert done.failed == 0
    for row in read_records(tmp_path / "records").rows:
        scores = row.retrained or row.after
        assert scores["top2_accuracy"] == 1.0  # of two classes
        assert row.latency["pruned"]["median"] > 0
        if row.extra["role"] == "small-dense":
            assert row.latency["compact"]
            assert row.parameters[1] <= row.extra["parameters_asked"]
            assert row.certificate is None
            continue
        assert row.latency["compact"] == ("node" in row.recipe)
        kinds = {statement["kind"] for statement in row.certificate["statements"]}
        assert {"sup", "predicted"} <= kinds
        held_out = [s for s in row.certificate["held_out"] if s["kind"] == "quantile"]
        assert all(0 <= s["measured"] <= s["value"] for s in held_out)
        assert held_out


def test_two_workers_give_the_records_of_one(serial, tmp_path):
    both = run(GRID, out=tmp_path / "two", cache=tmp_path / "cache2", workers=2)
    assert both.lost == 0
    assert table(serial[1] / "records") == table(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("*.jsonl"))) == 2  # a file per writer


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_peak_memory_is_of_the_run_alone(tmp_path):
    large = torch.ones(300_000_000, dtype=torch.uint8)
    del large
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run({**GRID, "seeds": 1, "densities": [0.5]}, out=tmp_path / "r", cache=tmp_path / "c")
    peaks = [row.peak_memory for row in read_records(tmp_path / "r").rows]
    assert max(peaks) < before - 200e6


def test_threads_of_blas_are_pinned_and_given_back(tmp_path):
    def threads():
        pools = threadpoolctl.threadpool_info()
        found = {p["num_threads"] for p in pools if p["user_api"] == "blas"}
        return *found, torch.get_num_threads()

    with threadpoolctl.threadpool_limits(limits=2):
        torch.set_num_threads(2)
        with pinned(1):
            assert threads() == (1, 1)
        grid = {**GRID, "seeds": 1, "recipes": ["magnitude"]}
        run(grid, out=tmp_path / "r", cache=tmp_path / "c")
        assert threads() == (2, 2)
        torch.set_num_threads(1)


def test_parts_share_a_folder(serial, tmp_path):
    grid, out = {**GRID, "seeds": 1}, tmp_path / "records"
    parts = [run(grid, out=out, cache=tmp_path / "c", part=(i, 3)) for i in (1, 2, 3)]
    assert [part.ran for part in parts] == [8, 8, 8]
    assert table(out) == rows_of_seed(0, serial[1])


def test_a_failing_cell_is_recorded_and_can_be_retried(tmp_path, monkeypatch):
    mended = tmp_path / "mended"
    monkeypatch.setenv("PRUNUS_TEST_MENDED", str(mended))
    grid = {**GRID, "tasks": ["bench_tiny:broken"], "recipes": ["magnitude"], "without": ["random",
            "small-dense"]}  # fmt: skip
    out, cache = tmp_path / "records", tmp_path / "cache"
    first = run(grid, out=out, cache=cache)
    assert (first.done, first.failed) == (4, 4)
    failed = [r for r in read_records(out).rows if r.status == "failed"]
    assert all("RuntimeError: the rate was too high" in r.traceback for r in failed)
    assert all("broken_retrain" in r.traceback for r in failed)
    mended.touch()
    assert run(grid, out=out, cache=cache).ran == 0
    again = run(grid, out=out, cache=cache, retry_failed=True)
    assert (again.ran, again.done, again.failed) == (4, 8, 0)
    assert len(unique(read_records(out).rows)) == 8


def test_a_folder_that_vanishes_stops_the_run(tmp_path, monkeypatch):
    """Its records would go where nobody finds them."""
    append, calls = work.append, []

    def vanishing(*args):
        calls.append(args)
        if len(calls) == 3:
            shutil.rmtree(tmp_path / "r")
        append(*args)

    monkeypatch.setattr(work, "append", vanishing)
    with pytest.raises(OSError, match=r"could not be written to .*r \(The file was taken away"):
        run(GRID, out=tmp_path / "r", progress=False)
    assert len(calls) == 3
    monkeypatch.undo()
    found = run({**GRID, "seeds": 1, "recipes": ["magnitude"]}, out=tmp_path / "r", progress=False)
    assert found.done == len(found.cells)


def test_scores_that_are_no_numbers_are_kept_and_named(tmp_path, monkeypatch, capsys):
    grid = {**GRID, "tasks": ["bench_tiny:odd"], "densities": [0.5], "seeds": 1,
            "recipes": ["magnitude"], "schedules": ["none"]}  # fmt: skip
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    monkeypatch.setattr(
        "sys.argv", ["prunus", "bench", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "r")]
    )
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    assert capsys.readouterr().err == (
        "NaN or infinite are after.gain of 2, after.nothing of 2, before.nothing of 2 runs in this "
        "folder.\n"
    )
    records = read_records(tmp_path / "r").rows
    assert [r.status for r in records] == ["done", "done"]
    assert all(math.isnan(r.after["nothing"]) and r.after["gain"] == math.inf for r in records)
    assert {r.before["gain"] for r in records} == {1.0}
    # and no score that the task gives is written over
    found = run({**grid, "top_k": 2}, out=tmp_path / "top", progress=False)
    assert found.failed == len(found.cells)
    row = read_records(tmp_path / "top").rows[0]
    assert "gives 'top2_accuracy', which is also made here" in row.traceback


def test_a_cell_that_kills_its_worker_fails_alone(tmp_path):
    grid = {**GRID, "tasks": ["bench_tiny:deadly"], "recipes": ["magnitude"], "densities": [0.5],
            "seeds": 1, "without": ["random", "small-dense"]}  # fmt: skip
    done = run(grid, out=tmp_path / "r", cache=tmp_path / "c", workers=2, retries=1)
    assert (done.done, done.failed, done.lost >= 2) == (1, 1, True)
    failed = next(r for r in read_records(tmp_path / "r").rows if r.status == "failed")
    assert failed.schedule == "retrain"
    assert failed.traceback.startswith("The worker process died 2 times.")


def test_missing_data_and_bad_folders_are_said_before_anything_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tiny\.npz is missing in data"):
        run({**GRID, "tasks": ["bench_tiny:without_data"]}, out=tmp_path / "r")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OSError, match=r"The output folder .*file cannot be written"):
        run(GRID, out=file)
    with pytest.raises(ValueError, match="Unknown executor 'slurm'"):
        run(GRID, out=tmp_path / "r", cache=tmp_path / "c", executor="slurm")
    with pytest.raises(ValueError, match=r"`part` must be a whole number in \[1, 2\], got 3"):
        run(GRID, out=tmp_path / "r", part=(3, 2))
    assert not list((tmp_path / "r").glob("*.jsonl"))


def test_a_full_disk_stops_the_run_and_leaves_records_whole(serial, tmp_path):
    grid = {**GRID, "seeds": 1}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))  # no file may grow beyond
    try:
        with pytest.raises(OSError, match=r"could not be written to .*Earlier records are whole"):
            run(grid, out=tmp_path / "full", cache=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = table(tmp_path / "full")
    assert 2 <= len(kept) < 24
    run(grid, out=tmp_path / "full", cache=tmp_path / "cache")
    assert table(tmp_path / "full") == rows_of_seed(0, serial[1])


def test_time_is_estimated_from_like_records(serial, tmp_path):
    whole, folder = serial
    known = [replace(r, seconds=2.0) for r in finished(folder / "records").values()]
    left = estimate(whole.cells, known, folder / "cache")
    assert (left.blank, left.networks) == (0, 0)
    assert left.seconds == pytest.approx(2.0 * len(known))
    more = [replace(cell, seed=cell.seed + 1) for cell in whole.cells]  # one seed is cached
    left = estimate(more, [], folder / "cache")
    assert (left.seconds, left.blank) == (0.0, len(more))
    assert (left.networks, left.untimed) == (1, 0)
    assert left.training > 0
    left = estimate(more, [], tmp_path / "empty")
    assert (left.networks, left.untimed, left.training) == (2, 2, 0.0)


def test_a_probe_runs_one_cell_of_each_kind(tmp_path):
    grid = {**GRID, "recipes": ["magnitude", "wanda+ls"]}
    first = run(grid, out=tmp_path / "r", cache=tmp_path / "c", probe=True)
    kinds = {(cell.task, cell.schedule, cell.label) for cell in first.cells}
    assert first.ran == len(first.cells) == len(kinds)
    again = run(grid, out=tmp_path / "r", cache=tmp_path / "c", probe=True)
    assert again.ran == 0
    whole = run(grid, out=tmp_path / "r", cache=tmp_path / "c")
    assert whole.ran == len(whole.cells) - len(kinds)
    assert whole.done == len(whole.cells)


def test_the_training_of_the_dense_network_is_no_time_of_a_cell(tmp_path, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(bench_tiny, "pause", lambda seconds: now.__setitem__(0, now[0] + seconds))
    for module in (cache, work):
        monkeypatch.setattr(module, "time", clock)
    grid = {**GRID, "tasks": ["bench_tiny:sleepy"], "schedules": ["none"], "seeds": 1}
    run(grid, out=tmp_path / "r", cache=tmp_path / "c", probe=True)
    taken, _ = trainings(bench_tiny.sleepy, tmp_path / "c")
    assert taken == [bench_tiny.SLEEP]
    assert max(r.seconds for r in finished(tmp_path / "r").values()) == 0.0


def test_a_failed_probe_is_not_tried_on_the_next_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_TEST_MENDED", str(tmp_path / "mended"))
    grid = {
        "tasks": ["bench_tiny:broken"],
        "recipes": ["magnitude"],
        "densities": [0.5, 0.25],
        "schedules": ["retrain"],
        "seeds": 1,
        "without": ["random", "small-dense"],
    }
    first = run(grid, out=tmp_path / "r", cache=tmp_path / "c", probe=True)
    assert (first.ran, first.failed) == (1, 1)
    assert run(grid, out=tmp_path / "r", cache=tmp_path / "c", probe=True).ran == 0


def test_foreign_files_in_the_cache_tell_no_time(tmp_path):
    folder = tmp_path / "c" / "trained"
    folder.mkdir(parents=True)
    save_file(
        {"w": torch.zeros(1)},
        folder / "bench_tiny.tiny-0.safetensors",
        {"identity": '{"task": "bench_tiny:tiny"}', "seconds": "1.0"},
    )
    assert trainings(bench_tiny.tiny, tmp_path / "c") == ([], set())
