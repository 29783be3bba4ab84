"""Single layers, and plans from them."""

import itertools
import math

import pytest
import torch

import models
import prunus
from prunus.budget import Budget
from prunus.rows import row_hashes
from prunus.theory.gap import InSampleWarning


@pytest.fixture(scope="module")
def setup():
    torch.manual_seed(0)
    model, x = models.MLP((12, 16, 10, 5)).eval(), torch.randn(64, 12)
    with torch.no_grad():
        target = model(x)

    def evaluate(net):
        with torch.no_grad():
            return {"gap": float((net(x) - target).square().mean()), "other": 1.0}

    return model, x, evaluate


DENSITIES = [0.75, 0.5, 0.25]


@pytest.mark.parametrize("higher", [True, False])
def test_a_network_without_a_number_is_the_worst(setup, higher):
    """Which way is better follows from the others, and no plan within a drop goes there."""
    model, _, _ = setup
    weight = model.layers[2].weight.numel()

    def evaluate(net):
        left = int((net.layers[2].weight != 0).sum()) / weight
        kept = sum(int((p != 0).sum()) for p in net.parameters())
        return math.nan if left < 0.4 else kept if higher else -kept

    scan = prunus.sensitivity(model, "magnitude", DENSITIES, evaluate=evaluate)
    assert scan.higher is higher
    losses = {r["density"]: r["loss"] for r in scan.records if r["layer"] == "layers.2"}
    assert losses == {0.75: weight / 4, 0.5: weight / 2, 0.25: math.inf}
    assert scan.table()[0]["layer"] == "layers.2"
    everything = sum(r["loss"] for r in scan.records if math.isfinite(r["loss"]))
    plan = scan.plan(Budget(drop=everything))
    assert plan.kept["layers.2"] == weight // 2
    assert math.isfinite(plan.value)


@pytest.mark.parametrize("recipe", ["wanda", "importance-node+ls"])
def test_every_run_prunes_one_layer_alone(setup, recipe):
    model, x, evaluate = setup
    scan = prunus.sensitivity(model, recipe, DENSITIES, data=[x], evaluate=evaluate)
    names = list(prunus.prune(model, recipe, 0.5, data=[x]).plan.kept)
    assert [(r["layer"], r["density"]) for r in scan.records] == list(
        itertools.product(names, DENSITIES)
    )
    assert not scan.higher  # pruning makes the gap larger
    for r in scan.records:
        alone = prunus.prune(model, recipe, {r["layer"]: r["density"]}, data=[x])
        assert r["value"] == pytest.approx(evaluate(alone.model)["gap"], rel=1e-6)
        assert r["loss"] == r["value"]
        assert r["kept"] == alone.plan.kept[r["layer"]]
        assert r["parameters"] == alone.cost_after.parameters
    order = [max(r["loss"] for r in scan.records if r["layer"] == n["layer"]) for n in scan.table()]
    assert order == sorted(order, reverse=True)
    assert scan.summary().splitlines()[1].split() == ["layer", "0.75", "0.5", "0.25"]


@pytest.mark.parametrize("recipe", ["magnitude", "importance-node"])
@pytest.mark.parametrize("budget", [0.6, Budget(parameters=300), Budget(macs=280)])
def test_a_plan_meets_its_budget_as_counted(setup, recipe, budget):
    model, x, evaluate = setup
    scan = prunus.sensitivity(model, recipe, DENSITIES, data=[x], evaluate=evaluate)
    plan = scan.plan(budget)
    pruned = prunus.prune(model, recipe, plan, data=[x])
    if isinstance(budget, float):
        assert pruned.cost_after.density <= budget
        assert plan.value == pytest.approx(pruned.cost_after.density)
    else:
        assert getattr(pruned.cost_after, budget.target) <= budget.value
        assert plan.value == getattr(pruned.cost_after, budget.target)
    # one step fewer would not have met it
    assert plan.kept
    target = "density" if isinstance(budget, float) else budget.target
    assert (plan.kind, plan.limit) == (
        target,
        budget if isinstance(budget, float) else budget.value,
    )
    assert plan.density == pytest.approx(pruned.cost_after.density)
    assert plan.rows == scan.rows
    lost = sum(r["loss"] for r in scan.records if plan.kept.get(r["layer"]) == r["kept"])
    said = "worse" if lost >= 0 else "better"
    assert plan.notes == (f"gap is {abs(lost):.4g} {said} if the layers' losses add up",)


@pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")
def test_a_plan_knows_the_samples_that_made_it(setup):
    model, x, evaluate = setup
    own = torch.randn(20, 12)
    scan = prunus.sensitivity(model, "wanda", [0.5], data=[own], evaluate=evaluate)
    plan = scan.plan(0.7)
    assert len(plan.rows) == 64 + 20
    assert plan.rows.among(row_hashes(torch.cat([x, own]))) == 64 + 20
    assert not model._forward_pre_hooks
    pruned = prunus.prune(model, "wanda", plan, data=[own])
    with pytest.warns(InSampleWarning):
        found = prunus.certify(model, pruned, data=x)
    assert all(statement.in_sample for statement in found.held_out)


def test_a_plan_takes_the_least_losses_of_all_that_meet_it(setup):
    """On hulls that are convex, against every choice of densities: within one step of the best."""
    model, x, evaluate = setup
    scan = prunus.sensitivity(model, "magnitude", DENSITIES, evaluate=evaluate)
    by = {}
    for r in scan.records:
        by.setdefault(r["layer"], [None]).append(r)
    sizes = {"layers.0": 192, "layers.2": 160, "layers.4": 50}
    for budget in (0.8, 0.6, 0.4):
        plan = scan.plan(budget)
        choices = []
        for picks in itertools.product(*by.values()):
            left = sum(p["kept"] if p else sizes[n] for n, p in zip(by, picks, strict=True))
            if left <= budget * 402:
                choices.append((sum(p["loss"] for p in picks if p), left))
        best = min(choices)[0]
        mine = sum(r["loss"] for r in scan.records if plan.kept.get(r["layer"]) == r["kept"])
        slack = max(r["loss"] for r in scan.records)
        assert best <= mine + 1e-12
        assert mine <= best + slack
        uniform = {n: round(budget * s) for n, s in sizes.items()}
        assert sum(plan.kept.get(n, s) for n, s in sizes.items()) <= sum(uniform.values()) + 1


def test_bad_input(setup):
    model, x, evaluate = setup
    scan = prunus.sensitivity(model, "magnitude", [0.5], evaluate=evaluate)
    cases = [
        (lambda: scan.plan(0.1), "reach a density of 0.5 at the least"),
        (lambda: scan.plan(Budget(latency=0.5, example=x)), "A scan plans for density, parameters"),
        (lambda: scan.plan(0), "must lie in"),
        (lambda: prunus.sensitivity(model, "magnitude", [], evaluate=evaluate), "must be a list"),
        (lambda: prunus.sensitivity(model, "magnitude", 0.5, evaluate=evaluate), "must be a list"),
        (lambda: prunus.sensitivity(model, "magnitude", [0.5, 0.5], evaluate=evaluate), "differ"),
        (lambda: prunus.sensitivity(model, "magnitude", [1.5], evaluate=evaluate), r"densities\[0"),
        (
            lambda: prunus.sensitivity(model, "magnitude", [0.5], evaluate=evaluate, metric="no"),
            "not 'no'",
        ),
        (lambda: prunus.sensitivity(model, "wanda", [0.5], evaluate=evaluate), "needs data"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_page_and_the_records(setup, tmp_path):
    model, x, evaluate = setup
    scan = prunus.sensitivity(model, "magnitude", DENSITIES, evaluate=evaluate)
    text = scan.report(tmp_path / "page.html").read_text()
    assert "The most sensitive layer is" in text
    lines = scan.save_csv(tmp_path / "scan.csv").read_text().splitlines()
    assert len(lines) == 1 + len(scan.records)
    assert "\n" not in repr(scan)


def test_the_command_plans_and_prune_takes_the_plan(tmp_path):
    from typer.testing import CliRunner

    from prunus.cli.app import app

    plan = tmp_path / "plan.json"
    found = CliRunner().invoke(
        app,
        ["sensitivity", "prunus.bench.zoo:digits_mlp", "--density", "0.3", "--budget", "0.5",
         "--out", str(plan), "--csv", str(tmp_path / "scan.csv")],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "the most sensitive first" in found.output
    done = CliRunner().invoke(
        app,
        ["prune", "prunus.bench.zoo:digits_mlp", "--recipe", "magnitude", "--plan", str(plan),
         "--data", "digits", "--out", str(tmp_path / "net")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    bad = CliRunner().invoke(
        app, ["sensitivity", "prunus.bench.zoo:digits_mlp", "--out", str(plan)]
    )
    assert "needs --budget" in str(bad.exception)
