"""Every named task goes through a grid, with all baselines, edges and nodes, and retraining."""

import os

import pytest

from prunus.bench import TASKS, read_records, run

REAL = [name for name in TASKS if not name.startswith("digits")]
FAST = ("digits-mlp", "digits-cnn", "mnist-lenet300")


def goes_through(name, folder):
    if name in REAL and not os.environ.get("PRUNUS_DATA"):
        pytest.skip("PRUNUS_DATA names no folder with the real sets")
    grid = {
        "tasks": [f"bench_small:{name.replace('-', '_')}"],
        "recipes": ["magnitude-global+ls", "importance-node+ls"],
        "densities": [0.5],
        "schedules": ["retrain"],
        "seeds": 1,
        "calibration": 200,
        "top_k": 5,
    }
    done = run(grid, out=folder / "records", cache=folder / "cache")
    rows = read_records(done.folder).rows
    assert [r.traceback for r in rows if r.status == "failed"] == []
    # two recipes, each bare and with small nets, random edges and nodes, random layer counts
    assert done.done == len(rows) == 9
    for row in rows:
        assert set(row.after) >= {"accuracy", "test_error", "cross_entropy", "top5_accuracy"}
        assert row.parameters[1] < row.parameters[0]
        assert row.macs[1] <= row.macs[0]
        # small networks have as many parameters at most, whose share of all is not the layers'
        low = 0.15 if row.extra["role"] == "small-dense" else 0.4
        assert low < row.density <= 0.52, row.recipe


@pytest.mark.parametrize("name", FAST)
def test_tasks_go_through_a_grid(tmp_path, name):
    goes_through(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TASKS) - set(FAST)))
def test_larger_tasks_go_through_a_grid(tmp_path, name):
    goes_through(name, tmp_path)
