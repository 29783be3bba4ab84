"""The reproductions of pruning papers: the paper's counts, both protocols, small runs, resume."""

import os
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from bench_tiny import short_digits
from prunus import Plan
from prunus.bench import read_records, trained
from prunus.bench.data.models import mlp
from prunus.bench.grid.load import make_grid
from prunus.bench.grid.sweep import unique
from prunus.calibration import calibrate
from prunus.cli.app import main
from prunus.compensation import NoCompensation
from prunus.engine import prune
from prunus.reproduce import (
    REPRODUCTIONS,
    Reproduction,
    acharyya2021,
    acharyya2021_cifar,
    acharyya2021_mnist,
    han2015_lenet,
    reproduction,
    save,
)
from prunus.reproduce.acharyya2021 import edge_count, node_count, run
from prunus.reproduce.harness import FailedRuns, Harness, carry_out
from prunus.surgery.masked import emitting


def test_counts_are_the_papers():
    percents = range(10, 100, 10)
    nodes = [node_count(p / 100, 784, 500, 500) for p in percents]
    assert nodes == [225, 255, 286, 316, 347, 377, 408, 438, 469]
    assert [edge_count(p / 100, 784) for p in (10, 20, 50)] == [79, 157, 392]
    assert edge_count(0.7, 10) == 7  # not 8 by 0.7 · 10 = 7.000000000000001


def test_a_unit_that_still_emits_adds_a_constant():
    torch.manual_seed(0)
    model = mlp((5, 8, 3), torch.nn.Sigmoid)
    x = torch.randn(50, 5)
    pruned = prune(model, "random-node", 0.5, data=x, layers="fc1")
    both = emitting(model, pruned.masks)
    kept = pruned.masks["fc1.bias"].bool()
    assert 0 < int(kept.sum()) < 8
    constant = model.fc2.weight[:, ~kept] @ torch.sigmoid(model.fc1.bias[~kept])
    torch.testing.assert_close(both(x), pruned.model(x) + constant)
    assert float(constant.detach().abs().max()) > 0.01
    assert bool(model.fc1.weight.all())  # the model itself stays


def test_channels_that_still_emit_lose_their_filters_alone():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3, bias=False)
    )
    pruned = prune(model, "random-node", 0.5, data=torch.randn(8, 2, 8, 8), exclude="2")
    both = emitting(model, pruned.masks)
    kept = pruned.masks["0.bias"].bool()
    assert 0 < int(kept.sum()) < 6
    assert not both[0].weight[~kept].any()
    torch.testing.assert_close(both[0].weight[kept], model[0].weight[kept])
    torch.testing.assert_close(both[0].bias, model[0].bias)
    torch.testing.assert_close(both[2].weight, model[2].weight)


ALONE = {"data_dir": None, "progress": False}
ONE = replace(
    acharyya2021_mnist.setting("small"), task=short_digits.name, densities=(0.3,), seeds=(1,)
)


def test_a_small_run_has_every_method_and_both_protocols(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    tiny = replace(
        acharyya2021_mnist.setting("small"), task=short_digits.name, densities=(0.3,),
        seeds=range(2), published={"random edge": {30: 4.21}}, published_dense=3.67,
    )  # fmt: skip
    result = run(tiny, seed=0, harness=Harness(records=tmp_path / "records"), **ALONE)
    found = {(row["method"], row["reweighted"]): row for row in result.rows}
    assert len(found) == 6 * 2 + 3
    errors = {key: row["test_error_percent"] for key, row in found.items()}
    # Reweighting lowers the layer's error always, the test error on the whole and where it is high.
    names = list(acharyya2021.methods("median"))
    assert sum(errors[n, "yes"] for n in names) < sum(errors[n, "no"] for n in names)
    assert errors["random edge", "yes"] < errors["random edge", "no"]
    assert errors["importance edge", "yes"] < errors["random edge", "no"]
    row = found["random edge", "yes"]
    assert row["published"] == 4.21
    assert row["published_excess"] == pytest.approx(0.54)
    assert row["low"] < row["excess"] < row["high"]
    assert found["random edge", "no"]["published"] is None
    files = {path.name for path in save(result, tmp_path / "out")}
    assert "acharyya2021-mnist-excess.png" in files
    assert len(files) == 6


def test_scores_in_the_records_are_those_of_pruning_by_hand(tmp_path, monkeypatch):
    """Reweighted, bare and emitting scores of every method, against `prune` called with a Plan."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    records = carry_out(acharyya2021.grids(ONE), Harness(), **ALONE)
    assert [record.recipe for record in records] == [
        "importance edge", "random edge", "DPP edge",
        "DIVNET (DPP node)", "importance node", "random node",
    ]  # fmt: skip
    data = short_digits.data(data_dir=None)
    dense = trained(short_digits, data, seed=1, progress=False).model
    statistics = calibrate(dense, data.batches(limit=1000), ("gram", "mean"), progress=False)
    recipes = acharyya2021.methods("median")
    plans = {
        "edge": Plan(kept={"fc1": (edge_count(0.3, 64),) * 60}),
        "node": Plan(kept={"fc1": node_count(0.3, 64, 60, 30)}),
    }

    def error(model):
        return short_digits.evaluate(model, data)["test_error"]

    for record in records:
        kind = "node" if "node" in record.recipe else "edge"
        recipe = recipes[record.recipe]
        common = {"data": statistics, "layers": "fc1", "seed": 1, "progress": False}
        own = prune(dense, recipe, plans[kind], **common)
        without = replace(recipe, compensation=NoCompensation())
        bare = prune(dense, without, plans[kind], **common)
        assert record.after["test_error"] == error(own.model)
        assert record.after["bare_test_error"] == error(bare.model)
        assert record.before["test_error"] == error(dense)
        if kind == "edge":
            assert "emitting_test_error" not in record.after
        else:
            assert record.after["emitting_test_error"] == error(emitting(dense, bare.masks))


def test_an_interrupted_reproduction_goes_on_and_ends_in_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    harness = Harness(records=tmp_path / "records")
    carry_out(acharyya2021.grids(ONE)[:1], harness, **ALONE)
    before = {r.id: r for r in read_records(tmp_path / "records").rows}
    resumed = run(ONE, seed=0, harness=harness, **ALONE)
    rows = read_records(tmp_path / "records").rows
    assert len(rows) == len({r.id for r in rows}) == 6
    assert all(r == before[r.id] for r in rows if r.id in before)
    again = run(ONE, seed=0, harness=harness, **ALONE)
    fresh = run(ONE, seed=0, harness=Harness(), **ALONE)
    files = [
        {path.name: path.read_bytes() for path in save(result, tmp_path / name)}
        for name, result in (("resumed", resumed), ("again", again), ("fresh", fresh))
    ]
    assert files[0] == files[1] == files[2]


def test_a_harness_hands_its_workers_to_the_run(monkeypatch):
    """What workers record is what one process does: tests/bench/test_kills.py."""
    asked = []

    class Asked(Exception):
        pass

    def run_by(grid, **how):
        asked.append(how)
        raise Asked

    monkeypatch.setattr("prunus.reproduce.harness.run", run_by)
    with pytest.raises(Asked):
        carry_out(acharyya2021.grids(ONE), Harness(workers=2, executor="local"), **ALONE)
    assert [(how["workers"], how["executor"]) for how in asked] == [(2, "local")]


@pytest.mark.slow  # three processes that import torch
def test_workers_give_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    alone = run(ONE, seed=0, harness=Harness(), **ALONE)
    shared = run(ONE, seed=0, harness=Harness(workers=2), **ALONE)
    assert alone.rows == shared.rows


def test_failed_runs_are_said_and_the_others_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    edges, _, nodes = acharyya2021.grids(ONE)
    bad = {**nodes, "budgets": [{"kept": {"fc1": 61}}]}
    with pytest.raises(FailedRuns, match=r"3 of 5 runs .*kept fc1 61.*in \[0, 60\]"):
        carry_out([bad, edges], Harness(records=tmp_path / "records"), **ALONE)
    states = [r.status for r in read_records(tmp_path / "records").rows]
    assert sorted(states) == ["done"] * 2 + ["failed"] * 3  # the grid behind the bad one ran
    with pytest.raises(FailedRuns) as caught:
        carry_out([bad], Harness(), **ALONE)
    folder = Path(re.search(r"the records in (\S+) hold", str(caught.value))[1])
    assert {r.status for r in read_records(folder).rows} == {"failed"}  # still there to be read
    shutil.rmtree(folder)

    def fails(**options):
        raise FailedRuns("1 of 2 runs failed.")

    monkeypatch.setattr("prunus.reproduce.han2015_lenet.reproduce", fails)
    monkeypatch.setattr(
        "sys.argv", ["prunus", "reproduce", "han2015-lenet", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "prunus: 1 of 2 runs failed.\n"


@pytest.mark.parametrize(("words", "scale"), [((), "small"), (("--full", "--seed", "3"), "full")])
def test_the_command_runs_the_scale_and_the_seed_that_were_asked(
    tmp_path, monkeypatch, capsys, words, scale
):
    def says(**options):
        raise FailedRuns(f"{options['scale']} with seed {options['seed']}.")

    monkeypatch.setattr("prunus.reproduce.han2015_lenet.reproduce", says)
    assert call(monkeypatch, "han2015-lenet", "--out", str(tmp_path), *words) == 2
    assert capsys.readouterr().err == f"prunus: {scale} with seed {3 if words else 0}.\n"


def test_records_of_other_data_are_not_taken_for_these(tmp_path, monkeypatch):
    """Conditions and results come from the records; a folder of other data's records is refused."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    grids = acharyya2021.grids(ONE)
    harness = Harness(records=tmp_path / "records")
    records = carry_out(grids, harness, **ALONE)
    facts = records[0].extra["data_set"]
    assert (facts["train"], facts["test"]) == (1346, 451)
    data = short_digits.data(data_dir=None)
    other = replace(data, y_test=data.y_test.flip(0), fingerprint="flipped")
    monkeypatch.setattr("prunus.bench.grid.work.data_of", lambda name, data_dir: other)
    with pytest.raises(ValueError, match=r"other data for bench_tiny:short_digits .*here flipped"):
        carry_out(grids, harness, **ALONE)


@pytest.mark.parametrize(
    "name",
    [
        "acharyya2021-mnist",
        pytest.param("acharyya2021-cifar", marks=pytest.mark.slow),  # the same run, another network
        "han2015-lenet",
    ],
)
def test_small_reproductions_run(tmp_path, monkeypatch, name):
    small = acharyya2021_mnist.setting("small")
    assert (tuple(small.seeds), small.densities) == ((0, 1, 2), (0.2, 0.5, 0.8))
    short = replace(small, seeds=(0,), densities=(0.2,))  # one network, at which claims are made
    monkeypatch.setattr(acharyya2021_mnist, "setting", lambda scale: short)
    full, slow = han2015_lenet.SMALL
    few = (replace(full, seeds=2), replace(slow, seeds=1))  # with an interval and without
    monkeypatch.setattr(han2015_lenet, "SMALL", few)
    result = reproduction(name)(scale="small", seed=0, **ALONE)
    assert result.name == name
    assert len({tuple(row) for row in result.rows}) == 1  # the same columns in every row
    save(result, tmp_path / "out")
    if name == "han2015-lenet":
        excess = {(r["network"], r["recipe"], r["way"]): r["excess"] for r in result.rows}
        for net, way in {key[::2] for key in excess}:
            assert excess[net, "magnitude", way] < excess[net, "random-edge", way]
        return
    at_fifth = {
        row["method"]: row["test_error_percent"]
        for row in result.rows
        if row["kept_percent"] == 20 and row["reweighted"] == "yes"
    }
    assert at_fifth["DPP edge"] < at_fifth["random edge"]
    assert at_fifth["importance edge"] < at_fifth["random edge"]


def test_full_scale_asks_for_what_was_published():
    mnist, cifar = acharyya2021_mnist.setting("full"), acharyya2021_cifar.setting("full")
    assert [g["budgets"][0]["kept"]["fc1"] for g in acharyya2021.grids(mnist)] == [
        79 * 500, 79 * 500, 225,
    ]  # fmt: skip
    edges, dpp, nodes = acharyya2021.grids(cifar, seed=3)
    assert dpp["budgets"] == [{"kept": {"fc1": 1000 * k}} for k in (615, 1536, 2458)]
    assert (dpp["seeds"], edges["seeds"]) == ([3], [3, 4, 5])
    assert nodes["budgets"][-1] == {"kept": {"fc1": 924}}
    assert mnist.published["DPP edge"][20] == 3.99
    assert cifar.published["DIVNET (DPP node)"][90] == 52.73
    for grid in (*acharyya2021.grids(mnist), edges, dpp, nodes, *han2015_lenet.grids("full")):
        make_grid(grid)
    lenet5 = han2015_lenet.grids("full")[1]["densities"]
    assert lenet5[1] == {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19}


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["prunus", "reproduce", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def test_the_list_says_what_each_needs(monkeypatch, capsys):
    assert call(monkeypatch) == 0
    out = capsys.readouterr().out
    for name, known in REPRODUCTIONS.items():
        line = next(line for line in out.splitlines() if f" {name} " in line)
        assert known.says in line
        assert known.data in line
        assert known.full in line
        assert re.match(r"(about )?\d+ (s|min|h)", known.small)
        assert known.full or not known.resumes
        assert re.match(r"(about )?\d+ (s|min|h)|$", known.full)
        assert ("yes" in line) == known.resumes


def test_what_cannot_run_is_refused_before_the_run(tmp_path, monkeypatch, capsys):
    def never(**options):
        raise AssertionError("it ran")

    monkeypatch.setattr("prunus.reproduce.han2015_lenet.reproduce", never)
    taken = tmp_path / "file"
    taken.write_text("")
    assert call(monkeypatch, "han2015-lenet", "--out", str(taken / "out")) == 2
    assert "Not a directory" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    assert call(monkeypatch, "han2015-lenet", "--out", str(tmp_path / "locked")) == 2
    assert "cannot be written. Name another with --out" in capsys.readouterr().err
    assert call(monkeypatch, "yang2023", "--workers", "2", "--out", str(tmp_path / "out")) == 2
    assert "yang2023 runs in this process alone" in capsys.readouterr().err


ACCOUNTS = {
    "acharyya2021-mnist": partial(acharyya2021.account, acharyya2021_mnist.setting("full")),
    "acharyya2021-cifar": partial(acharyya2021.account, acharyya2021_cifar.setting("full")),
    "han2015-lenet": partial(han2015_lenet.account, "full"),
}

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
DOCS = Path(__file__).parents[2] / "docs" / "benchmark.md"


@pytest.mark.parametrize("name", ["acharyya2021-mnist", "acharyya2021-cifar", "han2015-lenet"])
def test_what_is_shown_comes_from_the_kept_records(name, tmp_path):
    """The tables in the repository and in the docs, made again from the records beside them."""
    folder = RESULTS / name.replace("-", "_")
    records = unique(read_records(folder / "records.jsonl").rows)
    assert all(record.status == "done" for record in records)
    again = {path.name: path.read_bytes() for path in save(ACCOUNTS[name](records), tmp_path)}
    for kind in ("json", "md"):
        assert (folder / f"{name}.{kind}").read_bytes() == again[f"{name}.{kind}"]
    figure = f"{name}-excess.svg"
    assert (DOCS.parent / "figures" / figure).read_bytes() == again[figure]
    docs = DOCS.read_text()
    for line in again[f"{name}.md"].decode().splitlines():
        if line.startswith("|"):
            assert line in docs


def test_a_figure_does_not_replace_the_table(tmp_path):
    result = Reproduction(
        name="own", title="", paper="", conditions=[], rows=[], figures={"own": (None, [])}
    )
    with pytest.raises(ValueError, match=r"^A figure of 'own' has that name too"):
        save(result, tmp_path)
    assert not list(tmp_path.iterdir())
