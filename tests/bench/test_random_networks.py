"""The reproductions of Pensia et al. and Ramanujan et al.: small runs, verdicts, kept records."""

import json
from pathlib import Path

from prunus.bench import read_records
from prunus.bench.grid.load import make_grid
from prunus.bench.grid.sweep import unique
from prunus.bench.record import Record
from prunus.joint import EdgePopup
from prunus.reproduce import pensia2020, ramanujan2020, save
from prunus.reproduce.pensia2020 import Protocol
from prunus.reproduce.ramanujan2020 import DENSE, TRAINED, UNTRAINED, _Plan

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ALONE = {"data_dir": None, "progress": False}


def test_every_grid_is_one_that_the_benchmark_takes():
    for scale in ("small", "full"):
        for grid in ramanujan2020.grids(scale, seed=2):
            checked = make_grid(grid)
            assert min(checked.seeds) == 2
    full = ramanujan2020.grids("full")
    assert all(len(grid["seeds"]) == 5 for grid in full)
    published = EdgePopup.published(37)
    assert any(repr(published) in r["recipe"] for grid in full for r in grid["recipes"])


def test_a_small_search_beats_its_controls(monkeypatch):
    forms = {"ours": EdgePopup(epochs=8), "ours, layers share": EdgePopup(epochs=8, across=True)}
    plan = _Plan(ramanujan2020.narrow, (0.3,), forms, 400, 2)
    monkeypatch.setattr(ramanujan2020, "SMALL", (plan,))
    result = ramanujan2020.reproduce(scale="small", seed=0, **ALONE)
    error = {row["what"]: row["error_percent"] for row in result.rows}
    assert set(error) == {DENSE, UNTRAINED, TRAINED, "ours", "ours, layers share"}
    assert error[DENSE] < error[TRAINED] + 5
    for form in forms:
        assert error[form] < error[UNTRAINED] - 20
    assert all(row["seeds"] == 2 for row in result.rows)
    assert any(title.startswith("Test error (%), digits, 64-30-10") for title in result.tables)


def record(what, density, seed, error, dense, trained=None):
    role = {"density_asked": density, "density": density, "seed": seed, "recipe": what}
    return Record(
        id=f"{what}{density}{seed}", task=ramanujan2020.digits.name, recipe_repr="",
        recipe_hash="", before={"test_error": dense / 100}, after={"test_error": error / 100},
        retrained=None if trained is None else {"test_error": trained / 100}, **role,
    )  # fmt: skip


def test_conclusions_are_judged_by_paired_intervals():
    rows = []
    for seed, noise in enumerate((0.0, 0.1, 0.2, -0.1, -0.2)):
        dense = 3.0 + noise
        rows += [
            record("ours", 0.1, seed, 3.2 + 1.1 * noise, dense),
            record("fixed density", 0.1, seed, 3.0 + noise, dense),
            record("unscaled", 0.1, seed, 20 + 3 * noise, dense),
            record("unsigned", 0.1, seed, 9 + 10 * noise, dense),
            record("scaled as in their code", 0.1, seed, 12 + noise, dense),
            record("ranked by s", 0.1, seed, 5.0 - noise, dense),
            record("as published", 0.1, seed, 2.0 + noise, dense),
            record("random mask", 0.1, seed, 90 + noise, dense, trained=3.2 - 4 * noise),
        ]
    found = {
        (c["conclusion"], c["where"].rpartition(", ")[2]): (c["difference (points)"], c["verdict"])
        for c in ramanujan2020.account("small", rows).tables["Conclusions"]
    }
    assert found["scaling by the density is needed", "0.1"][1] == "holds"
    said = "an untrained subnetwork is as good as the trained network (to 1 point)"
    assert found[said, "0.1"] == ("0.20 ± 0.02", "holds")
    said = "constant weights without signs are far worse (5 points)"
    assert found[said, "0.1"][1] == "not told apart"  # 6 ± 1.8
    said = "it beats weights that are trained on a random mask"
    assert found[said, "0.1"][1] == "not told apart"
    assert found["ours is better than the published form", "0.1"][1] == "does not hold"
    said = "ranking s in place of |s| makes no difference (1 point)"
    assert found[said, "0.1"][1] == "does not hold"
    said = "a random mask of the same weights does not work (60 % wrong)"
    assert found[said, "0.1"][1] == "holds"
    said = "their code's scaling is worse below one half"
    assert found[said, "0.1"] == ("-9.00", "not told apart")  # five that are all alike
    assert not any(density == "0.5" for _, density in found)  # nothing is said of what was not run


TINY = Protocol(
    items=(4, 8),
    draws=3,
    trained=3,
    points=500,
    networks={"digits-mlp": (4, 6)},
    precisions=(0.1,),
    sums=40,
)


def test_networks_inside_random_ones(tmp_path):
    rows = pensia2020.rows_of(TINY, 0, None, False)
    built = [r for r in rows if r["part"] == "construction"]
    assert len(built) == 2 * 3 * 2
    assert all(r["output"] <= r["bound"] for r in built)
    by = {(r["n"], r["feedback"]): [] for r in rows if r["part"] == "network"}
    for r in rows:
        if r["part"] == "network":
            by[r["n"], r["feedback"]].append(r["rms"])
    assert all(r["weight"] > 0 for r in rows if r["part"] == "network")
    for n in (4, 6):  # specification 4.7: feedback ≤ 0.6 of the plain error
        assert sum(by[n, True]) < 0.6 * sum(by[n, False])
    result = pensia2020.account(rows)
    verdicts = {c["conclusion"]: c["verdict"] for c in result.tables["Conclusions"]}
    assert verdicts["no output error exceeds its bound"] == "holds"
    assert verdicts["the law is right within 0.03 and 4 standard errors, n = 10"] == "holds"
    assert verdicts["the theorem's samples fail in at most δ of the draws, ε = 0.1"] == "holds"
    assert "feedback with 4 items is as good as 6 without, digits-mlp" in verdicts
    assert {path.suffix for path in save(result, tmp_path)} >= {".json", ".md", ".svg"}


def test_a_broken_law_would_be_seen():
    """The verdicts are not words: other numbers give other ones."""
    rows = pensia2020.rows_of(
        Protocol(items=(4,), draws=2, points=10, networks={}, precisions=(), sums=1), 0, None, False
    )
    wrong = [
        {**r, "measured": r["measured"] + 0.3} if r["part"] == "law" else {**r, "bound": 1e-9}
        for r in rows
    ]
    table = pensia2020.account(wrong).tables["Conclusions"]
    assert {c["verdict"] for c in table} == {"does not hold"}


def test_what_is_shown_comes_from_the_kept_records(tmp_path):
    """The tables in the repository and in the docs, made again from the records beside them."""
    folder = RESULTS / "ramanujan2020"
    records = unique(read_records(folder / "records.jsonl").rows)
    assert all(r.status == "done" for r in records)
    again = {p.name: p.read_bytes() for p in save(ramanujan2020.account("full", records), tmp_path)}
    for kind in ("json", "md"):
        assert (folder / f"ramanujan2020.{kind}").read_bytes() == again[f"ramanujan2020.{kind}"]
    docs = (Path(__file__).parents[2] / "docs" / "subset_sum.md").read_text()
    for line in again["ramanujan2020.md"].decode().splitlines():
        if line.startswith("|"):
            assert line in docs


def test_the_kept_constructions_are_those_of_the_page(tmp_path):
    """Tables and verdicts of every row that was measured; five draws around each network."""
    folder = RESULTS / "pensia2020"
    rows = json.loads((folder / "pensia2020.json").read_text())["rows"]
    again = {path.name: path.read_bytes() for path in save(pensia2020.account(rows), tmp_path)}
    for name in ("pensia2020.json", "pensia2020.md"):
        assert (folder / name).read_bytes() == again[name]
    docs = (Path(__file__).parents[2] / "docs" / "subset_sum.md").read_text()
    for line in again["pensia2020.md"].decode().splitlines():
        if line.startswith("|"):
            assert line in docs
    draws = {(r["task"], r["n"], r["feedback"]): set() for r in rows if r["part"] == "network"}
    for r in rows:
        if r["part"] == "network":
            draws[r["task"], r["n"], r["feedback"]].add(r["draw"])
            assert r["weight"] > 0
    assert {task for task, _, _ in draws} == {"digits-mlp", "digits-cnn", "mnist-lenet300"}
    assert all(own == set(range(5)) for own in draws.values())
