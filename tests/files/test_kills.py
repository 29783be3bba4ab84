"""Writers that are killed: what was there before stands, and what was done is not lost.

Two ways: at every call to the system in turn, which meets every gap between two of them; and at
random moments (kill -9), which asks nothing of how a writer works.
"""

import importlib
import json
from itertools import count

import pytest
import torch

import models
import prunus
from killing import at_every_call, at_random
from prunus import files
from prunus.bench import read_records, run
from prunus.bench.grid import work
from writers import WRITERS, only_its_own


def killed_at_every_call(place, writer, stride):
    made = writer.made()
    writer.write(made, place, 0)
    deaths, outcomes = 0, set()
    version = 0

    def next_one():
        writer.write(made, place, version + 1)

    for said in at_every_call(next_one, stride):
        deaths += 1
        found = writer.read(made, place)
        assert found in (version, version + 1), said
        outcomes.add(found - version)
        # The next one goes on from there, and leaves nothing of the dead one.
        version = found + 1 if writer.grows else 0
        writer.write(made, place, version)
        assert writer.read(made, place) == version, said
        only_its_own(writer, place)
    assert deaths > 4
    assert outcomes == {0, 1}


@pytest.mark.parametrize("name", [name for name, writer in WRITERS.items() if writer.stride])
def test_killed_at_some_calls(tmp_path, name):
    killed_at_every_call(tmp_path, WRITERS[name], WRITERS[name].stride)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_killed_at_every_call(tmp_path, name):
    killed_at_every_call(tmp_path, WRITERS[name], 1)


def killed_at_random(place, writer, kills):
    made = writer.made()
    writer.write(made, place, 0)
    last = 0

    def work(done):
        for version in count(last + 1):
            writer.write(made, place, version % writer.kinds)
            done(version)

    for done in at_random(work, kills):
        assert done > last
        found = writer.read(made, place)
        assert found in (done % writer.kinds, (done + 1) % writer.kinds)
        last = done if found == done % writer.kinds else done + 1
    writer.write(made, place, (last + 1) % writer.kinds)
    only_its_own(writer, place)


@pytest.mark.parametrize("name", WRITERS)
def test_killed_at_random(tmp_path, name):
    killed_at_random(tmp_path, WRITERS[name], 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_sixty_random_kills(tmp_path, name):
    killed_at_random(tmp_path, WRITERS[name], 60)


def kill_comparisons(place, kills):
    model, x = models.MLP((6, 8, 4)), torch.randn(16, 6)
    module = importlib.import_module("prunus.engine.kept")
    add, finished = module.Kept.add, []

    def compare(number):
        return prunus.compare(
            model, ["magnitude", "wanda", "random-edge"], [0.5, 0.25], data=x, seeds=2,
            evaluate=lambda net: net(x).square().mean().item(), records=place / f"{number}.jsonl",
        ).records  # fmt: skip

    def rows():
        lines = [files.whole_lines(path)[0] for path in place.glob("*.jsonl")]
        found = [[json.loads(line)["run"] for line in own] for own in lines]
        assert all(len({*runs}) == len(runs) for runs in found), "a run was done twice"
        return sum(map(len, found))

    begun = 0

    def work(done):
        before = rows()

        def counted(self, *args):
            add(self, *args)
            finished.append(args)
            done(before + len(finished))

        module.Kept.add = counted
        for number in count(begun):
            compare(number)

    for done in at_random(work, kills):
        assert rows() in (done, done + 1)
        begun = max(0, len(list(place.glob("*.jsonl"))) - 1)
    numbers = sorted(int(path.stem) for path in place.glob("*.jsonl"))
    assert numbers == list(range(len(numbers)))
    whole = {n: compare(n) for n in [*numbers[:2], numbers[-1], len(numbers)]}
    (*_, fresh) = whole.values()  # the last file was new
    assert {len(found) for found in whole.values()} == {len(fresh)}
    for found in whole.values():
        assert [r["metric"] for r in found] == [r["metric"] for r in fresh]
        assert [r["run"] for r in found] == [r["run"] for r in fresh]


def test_comparisons_that_are_killed_go_on(tmp_path):
    kill_comparisons(tmp_path, 4)


@pytest.mark.slow
def test_sixty_killed_comparisons_go_on(tmp_path):
    kill_comparisons(tmp_path, 60)


@pytest.mark.slow
def test_sixty_killed_benchmarks_go_on(tmp_path):
    """One process; workers and clusters are killed in tests/bench/test_kills.py."""
    grid = {
        "tasks": ["bench_tiny:tiny"], "recipes": ["magnitude", "wanda+ls"],
        "densities": [0.5, 0.25], "seeds": 3, "without": ["small-dense"],
    }  # fmt: skip
    cache = tmp_path / "cache"
    whole = run(grid, out=tmp_path / "whole", cache=cache, progress=False)
    append = work.append

    def rows():
        found = [read_records(path).rows for path in tmp_path.glob("out*") if any(path.iterdir())]
        for own in found:
            assert len({row.id for row in own}) == len(own), "a cell was recorded twice"
        return sum(map(len, found))

    begun = 0

    def child(done):
        state = {"rows": rows()}

        def counted(*args):
            append(*args)
            state["rows"] += 1
            done(state["rows"])

        sweep = importlib.import_module("prunus.bench.grid.sweep")
        work.append = sweep.append = counted
        for number in count(begun):
            run(grid, out=tmp_path / f"out{number}", cache=cache, progress=False)

    for done in at_random(child, 60):
        assert rows() in (done, done + 1)
        begun = max(0, len(list(tmp_path.glob("out*"))) - 1)
    expected = {r.id: r.after for r in read_records(tmp_path / "whole").rows}
    for number in range(begun + 1):
        out = tmp_path / f"out{number}"
        assert run(grid, out=out, cache=cache, progress=False).done == len(whole.cells)
        assert {r.id: r.after for r in read_records(out).rows} == expected
