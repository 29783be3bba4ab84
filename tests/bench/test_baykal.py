"""The reproduction of SiPP and PFP: a small run, its statements, and verdicts that can fail."""

import json
from pathlib import Path

import pytest

from prunus.bench import read_records
from prunus.bench.grid.load import make_grid
from prunus.bench.grid.sweep import unique
from prunus.bench.record import Record
from prunus.report.grid import markdown_table
from prunus.reproduce import baykal2022, save
from prunus.reproduce.baykal2022 import EDGES, NODES, _Plan


def test_every_grid_is_one_that_the_benchmark_takes():
    for scale in ("small", "full"):
        for grid in baykal2022.grids(scale, seed=1):
            assert min(make_grid(grid).seeds) == 1


@pytest.mark.slow
def test_a_small_run_has_every_recipe_and_true_statements(tmp_path, monkeypatch):
    monkeypatch.setattr(baykal2022, "SMALL", (_Plan("digits-mlp", (0.3,), (0.3,), 2),))
    monkeypatch.setattr(baykal2022, "STATED", {"small": (0.7,)})
    result = baykal2022.reproduce(scale="small", seed=0, data_dir=None, progress=False)
    error = {row["what"]: row["error_percent"] for row in result.rows}
    assert set(error) == {"dense", *EDGES, *NODES}
    assert error["sipp, global"] > error["sipp, row"] > error["sipp, drawn"]
    assert error["pfp +ls"] < error["pfp"]
    said = result.tables["Mean relative error of a layer's outputs, digits MLP"]
    assert {line["recipe"] for line in said} == {"sipp-row", "sipp-random"}
    for line in said:
        assert float(line["seen"]) <= float(line["bound"])
        assert (line["over draws ≤"] == "–") == (line["recipe"] == "sipp-row")
    assert result.tables["Conclusions"][-1]["verdict"] == "holds"
    save(result, tmp_path)


def record(what, density, seed, error, layers=1.0):
    return Record(
        id=f"{what}{density}{seed}", task="digits-mlp", recipe=what, recipe_repr="", recipe_hash="",
        seed=seed, density_asked=density, density=density, before={"test_error": 0.03},
        after={"test_error": error / 100}, layer_error={"fc2": layers},
    )  # fmt: skip


def test_conclusions_follow_the_numbers():
    rows = []
    for seed in range(5):
        noise = 0.1 * seed
        rows += [record(what, 0.3, seed, 10 + noise) for what in EDGES]
        rows += [record(what, 0.3, seed, 4 + noise, 2.0) for what in NODES]
    said = [{"recipe": "sipp-row", "layer": "fc1", "density": 0.7, "seed": 0, "bound": 0.1,
             "seen": 0.2, "fresh": 0.3, "held_out": 0.3, "draws": None}]  # fmt: skip
    table = baykal2022.account("small", rows, said).tables["Conclusions"]
    verdict = {line["conclusion"]: line["verdict"] for line in table}
    assert verdict["shares ranked over all layers collapse (30 % wrong)"] == "does not hold"
    assert verdict["with +ls pfp is as good as L1 (to 0.5 points)"] == "holds"
    said = "as a set for +ls pfp leaves less error in the layers"
    assert verdict[said] == "not told apart"
    assert verdict["no calibration input exceeds its bound"] == "does not hold"


def test_what_is_shown_comes_from_the_kept_records():
    """Errors and verdicts in the repository and in the docs, made again from the records."""
    root = Path(__file__).parents[2]
    folder = root / "benchmarks" / "results" / "baykal2022"
    records = unique(read_records(folder / "records.jsonl").rows)
    assert all(r.status == "done" for r in records)
    errors, layers = baykal2022._errors(records), baykal2022._layer_errors(records)
    kept = json.loads((folder / "baykal2022.json").read_text())["tables"]
    docs = (root / "docs" / "sampling_methods.md").read_text()
    own = [title for title in kept if title.startswith("Test error")]
    made = [
        baykal2022._table(errors, name, rules)
        for name in ("digits-mlp", "digits-cnn", "mnist-lenet300")
        for rules in (EDGES, NODES)
    ]
    assert [kept[title] for title in own] == made
    claims = baykal2022._claims(errors, layers, [])[:-1]  # the last is of the statements
    assert len(kept["Conclusions"]) == len(claims) + 1
    assert all(claim in kept["Conclusions"] for claim in claims)
    assert {len(seeds) for seeds in errors.values()} == {5}
    for table in kept.values():
        assert markdown_table(table) in docs
