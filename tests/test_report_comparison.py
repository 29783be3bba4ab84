"""The pages of comparisons, and the example of the six methods."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

import prunus
from prunus.bench import evaluate, load_data
from prunus.bench.data.models import mlp
from prunus.bench.statistics.comparison import latency_rows, records_of, report_rows
from prunus.report.comparison import comparison_rows, network_section
from prunus.report.page import Chart, Table
from prunus.report.tables import recipe_rows, score_rows

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist_six_methods.py"


@pytest.fixture(scope="module")
def comparison():
    data = load_data("digits")
    net = mlp((64, 12, 10)).eval()
    return prunus.compare(
        net,
        ["magnitude", "magnitude+ls", "importance-node"],
        [0.5, 0.25],
        data=data.batches(limit=300),
        evaluate=lambda model: evaluate(model, data),
        seeds=2,
        metric="test_error",
        latency=True,
        progress=False,
    )


def blocks(section, kind):
    flat = []
    for block in section.blocks:
        flat += block if isinstance(block, list) else [block]
    return {block.name: block for block in flat if isinstance(block, kind)}


def test_page_of_a_comparison(comparison, tmp_path):
    text = comparison.report(tmp_path / "page.html").read_text()
    for part in ("Weights removed", "Nodes removed", "Measured latency", "Han et al. (2015)"):
        assert part in text


def test_section_holds_the_numbers(comparison):
    section = network_section(
        comparison_rows(comparison), comparison.latencies, metric="test_error"
    )
    charts = blocks(section, Chart)
    assert sorted(charts) == [
        "by-parameters", "layers", "nodes-by-density", "speed-up", "weights-by-density"
    ]  # fmt: skip
    rows = {
        (r["method"], r["compensation"], r["at"]): r["mean"]
        for r in charts["weights-by-density"].rows
    }
    for record in comparison.records:
        base, plus, _ = record["recipe"].partition("+")
        if base == "magnitude":
            style = "with least squares" if plus else "without least squares"
            at = (base, style, record["density"])
            assert rows[at] == pytest.approx(100 * record["test_error"])
    layers = {
        (r["method"], r["layer"]): r["layer_density"]
        for r in charts["layers"].rows
        if r["density"] == 0.25
    }
    assert layers["magnitude", "fc1"] == 0.25
    table = blocks(section, Table)["scores"].rows
    assert [row["recipe"] for row in table] == ["magnitude", "magnitude+ls", "importance-node"]


def test_records_give_the_same_figures_as_the_comparison(comparison):
    records = records_of(comparison, task="mine", data="d")
    assert len({r.id for r in records}) == len(records) == len(comparison.records)
    assert all(prunus.recipes[r.recipe].digest == r.recipe_hash for r in records)
    assert len(latency_rows(records)) == len(comparison.latencies) == 2
    one, two = (
        network_section(rows, comparison.latencies, metric="test_error")
        for rows in (comparison_rows(comparison), report_rows(records, "test_error"))
    )
    for name, chart in blocks(one, Chart).items():
        assert list(blocks(two, Chart)[name].rows) == list(chart.rows)


def test_records_without_parameters_or_scores_are_drawn_as_far_as_they_go(comparison):
    records = [replace(r, parameters=None) for r in records_of(comparison, task="mine", data="d")]
    charts = blocks(network_section(report_rows(records, "accuracy"), metric="accuracy"), Chart)
    assert "by-parameters" not in charts
    assert "weights-by-density" in charts
    assert report_rows([replace(records[0], status="failed")], "accuracy") == []


def test_budgets_and_plain_scores_have_a_page(tmp_path):
    data = load_data("digits")
    found = prunus.compare(
        mlp((64, 12, 10)).eval(),
        {"mine": prunus.recipes["magnitude-row"], "wanda+ls": "wanda+ls"},
        [prunus.Budget(parameters=400), prunus.Budget(parameters=200)],
        data=data.batches(limit=300),
        evaluate=lambda model: float(evaluate(model, data)["cross_entropy"]),
        seeds=1,
        progress=False,
    )
    text = found.report(tmp_path / "page.html").read_text()
    assert "a recipe of your own" in text
    assert "density parameters=400" in text


def test_score_table_by_hand():
    records = [
        {"recipe": "a", "density": 0.1, "s": 1.0},
        {"recipe": "a", "density": 0.1, "s": 2.0},
        {"recipe": "b", "density": 0.5, "s": None},
    ]
    assert score_rows(records, "s") == [
        {"recipe": "a", "density 0.5": None, "density 0.1": 1.5},
        {"recipe": "b", "density 0.5": None, "density 0.1": None},
    ]


def test_every_recipe_has_a_row_with_its_paper():
    rows = recipe_rows(prunus.recipes)
    assert {row["recipe"] for row in rows} == {name.partition("+")[0] for name in prunus.recipes}
    assert all(row["paper"] and row["keeps"] for row in rows)


def example():
    spec = importlib.util.spec_from_file_location("mnist_six_methods", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_node_counts_are_the_papers():
    share = example().node_share
    counts = [round(500 * share(p / 10, 784, 500, 500)) for p in range(1, 10)]
    assert counts == [225, 255, 286, 316, 347, 377, 408, 438, 469]


def test_the_six_methods_in_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    module = example()
    module.main(["--small", "--densities", "0.5", "--seeds", "1", "--out", str(tmp_path / "six")])
    assert "random-edge+ls" in capsys.readouterr().out
    stored = json.loads((tmp_path / "six.json").read_text())
    assert len(stored["records"]) == 24  # 6 methods, with and without, two protocols
    first = [r for r in stored["records"] if r["protocol"] == "first layer only"]
    # Equal parameters: weights keep half of 64·100, nodes 100·(64·0.5 + 100) // 164 = 80 of 100.
    weights = {r["parameters"] for r in first if r["recipe"] == "magnitude-row"}
    nodes = {r["parameters"] for r in first if r["recipe"] == "random-node"}
    assert weights == {64 * 50 + 100 + 100 * 100 + 100 + 1010}
    assert nodes == {80 * 64 + 80 + 80 * 100 + 100 + 1010}
    assert all(r["test_error_before"] < 0.08 for r in stored["records"])
    assert "| dpp-node+ls |" in (tmp_path / "six.md").read_text()


def test_captions_say_over_how_many_runs(comparison):
    """Recipes that draw nothing run once, whatever the number of seeds."""
    section = network_section(comparison_rows(comparison), metric="test_error")
    charts = [b for b in blocks(section, Chart).values() if "Points" in b.caption]
    assert charts
    assert all("Points: one run each." in chart.caption for chart in charts)
    drawn = [{**r, "recipe": "random-edge", "seed": s} for r in comparison_rows(comparison)[:1]
             for s in range(2)]  # fmt: skip
    mixed = network_section([*comparison_rows(comparison), *drawn], metric="test_error")
    weights = blocks(mixed, Chart)["weights-by-density"]
    assert "mean over up to 2 seeds; the band" in weights.caption


def test_the_foot_names_the_data(comparison, tmp_path):
    text = comparison.report(tmp_path / "page.html", made="2026-01-02").read_text()
    foot = text[text.index("<footer>") :]
    assert "Page made on 2026-01-02" in foot
    assert "300 samples calibrated" in foot
    assert f"<code>{comparison.data_fingerprint}</code>" in foot
