"""Compressed networks in grids: bytes and scores of every way, and runs that go on."""

import json
from dataclasses import replace
from functools import partial

import pytest

import bench_tiny
import models
from prunus.bench import Task, Training
from prunus.bench.data.tasks import trainer
from prunus.bench.grid.compressed import way_of
from prunus.bench.grid.config import cells
from prunus.bench.grid.load import make_grid
from prunus.bench.grid.sweep import finished, run
from prunus.bench.record import record_files

QUICK = Training(epochs=4, learning_rate=1e-2, batch=16)


def apart(*, data_dir=None):
    """The last samples of the training part."""
    whole = bench_tiny.data()
    return replace(whole, x_train=whole.x_train[-16:], y_train=whole.y_train[-16:])


TINY = Task(
    name="compression.test_grid:TINY",
    title="tiny",
    data=bench_tiny.data,
    model=partial(models.MLP, (6, 40, 20, 2)),
    train=trainer(QUICK),
    retrain=trainer(replace(QUICK, epochs=1)),
    held_out=apart,
)
BLIND = replace(TINY, name="compression.test_grid:BLIND", held_out=None)
WAYS = ["lossless", "4", "4 tuned", "layers.0=3,*=6 tuned published", "rate=0.5"]
GRID = {
    "tasks": [TINY.name], "recipes": ["magnitude"], "densities": [0.3], "seeds": 2,
    "schedules": ["retrain"], "compress": WAYS,
    "without": ["random", "random-layers", "small-dense", "no-retraining"],
}  # fmt: skip


def test_every_way_has_its_bytes_and_scores(tmp_path):
    run(make_grid(GRID), out=tmp_path, progress=False)
    records = finished(tmp_path)
    assert {r.status for r in records.values()} == {"done"}, [r.traceback for r in records.values()]
    for record in records.values():
        found = record.extra["compressed"]
        assert set(found) == set(WAYS)
        for way, own in found.items():
            parts = sum(size for layer in own["parts"].values() for size in layer.values())
            assert parts == own["bytes"] < own["dense_bytes"]
            shared = ["k" in facts for facts in own["layers"].values()]
            assert any(shared) == (way != "lossless")
        whole = found["lossless"]["scores"]
        assert whole == record.retrained  # to the bit
        assert found["4"]["bytes"] == found["4 tuned"]["bytes"]  # codes stay, values move
        assert found["4"]["scores"] != found["4 tuned"]["scores"]
        assert found["rate=0.5"]["lam"] >= 0


def test_a_run_goes_on_where_it_stopped(tmp_path):
    """Records whose line was torn are done again, the others are left, and all are the same."""
    grid = make_grid({**GRID, "compress": ["4 tuned", "lossless"]})
    run(grid, out=tmp_path / "whole", progress=False)
    run(grid, out=tmp_path / "torn", progress=False)
    [file] = record_files(tmp_path / "torn")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])
    again = run(grid, out=tmp_path / "torn", progress=False)
    assert (again.ran, again.done, again.failed) == (1, 2, 0)
    one, other = finished(tmp_path / "whole"), finished(tmp_path / "torn")
    assert one.keys() == other.keys() == {cell.id for cell in cells(grid)}
    for key, record in one.items():
        assert json.dumps(record.extra["compressed"]) == json.dumps(other[key].extra["compressed"])
    assert run(grid, out=tmp_path / "torn", progress=False).ran == 0


def test_ways_that_are_none_are_named_before_anything_runs():
    for way in ("none", "0", "5000", "rate=-1", "lossless tuned", "rate=0.1 published", "8 tund"):
        with pytest.raises(ValueError, match=r"^(a way to compress|lossless takes|the published)"):
            way_of(way)
        with pytest.raises(ValueError, match=r"compress\.0: "):
            make_grid({**GRID, "compress": [way]})
    assert way_of("conv*=256,fc*=32 tuned").values == {"conv*": 256, "fc*": 32}


def test_a_rate_needs_samples_that_are_held_out(tmp_path):
    grid = make_grid({**GRID, "tasks": [BLIND.name], "compress": ["rate=0.1"], "seeds": 1})
    run(grid, out=tmp_path, progress=False)
    [record] = finished(tmp_path).values()
    assert "holds no samples out from training, which `rate=` measures on" in record.traceback
