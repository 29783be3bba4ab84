"""The lowest density within what a metric may lose."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
import prunus
from prunus.budget import Budget
from prunus.engine.drop import FLOOR, PROBE, RESOLUTION, Search, Trial, search
from prunus.schedules import Refine


def searched(curve, limit, *, dense=1.0, higher=True, tries=40):
    """What a search finds of a metric that is a function of the density."""
    found = Search(dense=dense, limit=limit, higher=higher)
    search(found, lambda d: Trial(density=d, met=d, value=curve(d)), tries)
    return found


@given(st.floats(0.002, 0.97), st.sampled_from([1, -1]), st.booleans())
def test_the_edge_of_a_monotone_metric_is_found_to_three_percent(edge, sign, told):
    """Metrics that fall, and metrics that rise, with the direction told or seen."""

    def curve(d):
        return sign * min(1.0, math.log(d) / -math.log(edge) + 2)  # loses 1 % at `edge` exactly

    limit = 1.0 - sign * curve(edge) if sign > 0 else curve(edge) + 1.0
    found = searched(curve, limit, dense=sign * 1.0, higher=sign > 0 if told else None)
    assert found.higher == (sign > 0)
    assert found.monotone
    assert edge <= found.best.density * (1 + 1e-9)
    assert found.best.density <= edge * RESOLUTION * 1.01  # densities have three digits
    # 11 halvings from 1 to 1/1024, the probe, and 5 of one interval of a factor of two
    assert len(found.trials) <= 17


def test_every_density_is_tried_once_and_no_more_than_allowed():
    calls = []
    found = Search(dense=1.0, limit=0.0, higher=None)

    def run(d):
        calls.append(d)
        return Trial(density=d, met=d, value=min(1.0, d / 0.3))

    search(found, run, 6)
    assert len(calls) == len(set(calls)) == len(found.trials) == 6
    assert calls[0] == PROBE
    assert found.best.density >= 0.3
    assert all(FLOOR <= d < 1 for d in calls)


def test_a_metric_that_comes_back_is_said():
    found = searched(lambda d: 0.5 if 0.4 < d < 0.6 else (1.0 if d > 0.2 else 0.0), 0.1)
    assert 0.2 < found.best.density < 0.2 * RESOLUTION * 1.01
    assert not found.monotone
    # Two failures in a row end the halving: what lies below a wide gap is not looked for.
    wide = searched(lambda d: 1.0 if d > 0.6 or d < 0.1 else 0.0, 0.1)
    assert wide.best.density > 0.6


def test_nan_is_never_within_the_limit():
    found = searched(lambda d: math.nan if d < 0.3 else 1.0, 0.5)
    assert 0.3 <= found.best.density < 0.3 * RESOLUTION * 1.01
    with pytest.raises(ValueError, match=r"The metric is NaN at density 0\.0156"):
        searched(lambda d: math.nan, 0.5, higher=None)


def test_a_limit_is_met_to_rounding():
    """0.97 - 0.96 is more than 0.01 in binary."""
    assert 0.97 - 0.96 > 0.01
    found = searched(lambda d: 0.96, 0.01, dense=0.97)
    assert found.best.density == FLOOR


# -- with networks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup():
    torch.manual_seed(0)
    model, x = models.MLP((12, 16, 10, 5)).eval(), torch.randn(96, 12)
    with torch.no_grad():
        target = model(x[32:])
    calls = []

    def evaluate(net):
        calls.append(net)
        with torch.no_grad():
            gap = float((net(x[32:]) - target).square().mean())
        return {"closeness": 1 / (1 + gap), "gap": gap}

    return model, x, evaluate, calls


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("magnitude", {}),
        ("wanda+ls", {}),
        ("importance-node+ls", {}),
        (replace(prunus.recipes["obd"], schedule=Refine(2)), {}),  # reads the data in each round
        ("magnitude", {"layers": ["layers.0", "layers.2"]}),
        ("wanda", {"blocks": "layers.*"}),
    ],
)
def test_the_network_within_a_drop(setup, recipe, given):
    model, x, evaluate, calls = setup
    budget = Budget(metric="gap", drop=0.002)
    calls.clear()
    pruned = prunus.prune(model, recipe, budget, data=[x[:32]], evaluate=evaluate, **given)
    count = len(calls)
    plan = pruned.plan
    assert plan.kind == "drop"
    assert plan.limit == 0.002
    assert plan.value == pruned.metrics["pruned"]["gap"] <= 0.002
    assert pruned.metrics["before"]["gap"] == 0.0
    assert evaluate(pruned.model) == pruned.metrics["pruned"]
    assert (
        f"found by {count} evaluations (the dense network, and {count - 1} densities)"
        in (plan.notes[0])
    )
    assert "lower is better" in plan.notes[0]
    # the same by the density alone; with 5 % fewer weights it loses too much
    density = float(plan.notes[0].split()[1])
    alone = prunus.prune(model, recipe, density, data=[x[:32]], **given)
    for name, layer in alone.layers.items():
        assert torch.equal(layer.mask, pruned.layers[name].mask)
        torch.testing.assert_close(layer.weight, pruned.layers[name].weight, atol=1e-5, rtol=1e-4)
    if recipe != "importance-node+ls":  # of few nodes, the next density is the same network
        less = prunus.prune(model, recipe, density / 1.08, data=[x[:32]], **given)
        assert evaluate(less.model)["gap"] > 0.002


def test_it_is_the_same_every_time_and_the_model_untouched(setup):
    model, x, evaluate, _ = setup
    before = {key: value.clone() for key, value in model.state_dict().items()}
    budget = Budget(metric="closeness", drop=0.01)
    one, two = (
        prunus.prune(model, "dpp-edge+ls", budget, data=[x[:32]], evaluate=evaluate, seed=3)
        for _ in range(2)
    )
    assert one.plan.notes == two.plan.notes
    assert all(torch.equal(one.masks[key], two.masks[key]) for key in one.masks)
    assert "higher is better" in one.plan.notes[0]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model._forward_pre_hooks
    assert not one.model._forward_pre_hooks


def test_samples_that_evaluate_and_calibrate_are_counted(setup):
    model, x, evaluate, _ = setup
    budget = Budget(metric="gap", drop=0.002)
    apart = prunus.prune(model, "wanda", budget, data=[x[:32]], evaluate=evaluate)
    shared = prunus.prune(model, "wanda", budget, data=[x[:40]], evaluate=evaluate)
    assert "score once on other samples" in apart.plan.notes[1]
    assert "also calibrated" not in apart.plan.notes[1]
    assert "8 of the 64 samples that `evaluate` reads also calibrated" in shared.plan.notes[1]
    assert len(apart.plan.rows) == 64
    assert apart.plan.rows.among(prunus.rows.row_hashes(x)) == 64


def test_a_plan_of_it_prunes_alike_and_is_kept(setup, tmp_path):
    model, x, evaluate, _ = setup
    budget = Budget(metric="gap", drop=0.002)
    pruned = prunus.prune(model, "wanda", budget, data=[x[:32]], evaluate=evaluate)
    plan = prunus.plan(model, budget, recipe="wanda", data=[x[:32]], evaluate=evaluate)
    again = prunus.prune(model, "wanda", plan, data=[x[:32]])
    assert all(torch.equal(again.masks[key], pruned.masks[key]) for key in pruned.masks)
    known = prunus.Plan.from_json(plan.to_json())
    assert (known.kind, known.limit, known.value) == ("drop", 0.002, plan.value)
    assert known.notes == plan.notes
    pruned.save(tmp_path / "net")
    loaded = prunus.load(tmp_path / "net", model)
    assert loaded.plan.notes == plan.notes
    assert plan.notes[0] in " ".join(loaded.summary().split())


def test_training_after_each_density_counts(setup):
    """What is judged is the trained network."""
    model, x, evaluate, _ = setup
    with torch.no_grad():
        target = model(x[:32])

    def train(net, step):
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(net(x[:32]), target).backward()
            optimizer.step()

    budget = Budget(metric="gap", drop=0.002)
    plain = prunus.prune(model, "magnitude", budget, evaluate=evaluate)
    trained = prunus.prune(model, "magnitude", budget, evaluate=evaluate, train=train)
    assert trained.cost_after.density < plain.cost_after.density
    assert set(trained.metrics) == {"before", "trained"}
    assert evaluate(trained.model)["gap"] <= 0.002
    assert all((p[~trained.masks[n]] == 0).all() for n, p in trained.model.named_parameters()
               if n in trained.masks)  # fmt: skip


def test_a_comparison_by_what_may_be_lost(setup):
    model, x, evaluate, _ = setup
    budget = Budget(metric="gap", drop=0.002)
    found = prunus.compare(
        model, ["magnitude", "magnitude+ls"], [budget], data=[x[:32]], evaluate=evaluate,
        metric="gap",
    )  # fmt: skip
    met = {row["recipe"]: row["density_met"] for row in found.table()}
    assert met["magnitude+ls"] < met["magnitude"]
    assert all(row["gap"] <= 0.002 for row in found.table())


def test_a_scan_plans_for_a_drop(setup):
    model, x, evaluate, _ = setup
    scan = prunus.sensitivity(
        model, "magnitude", [0.75, 0.5, 0.25], evaluate=evaluate, metric="gap"
    )
    plan = scan.plan(Budget(metric="gap", drop=0.004))
    assert 0 < plan.value <= 0.004
    losses = {(r["layer"], r["kept"]): r["loss"] for r in scan.records}
    assert plan.value == pytest.approx(sum(losses[item] for item in plan.kept.items()))
    assert scan.plan(Budget(drop=0.01)).density < plan.density
    assert scan.plan(Budget(drop=0.0)).density == 1.0
    with pytest.raises(ValueError, match="The scan is of 'gap', got a budget of 'closeness'"):
        scan.plan(Budget(metric="closeness", drop=0.02))


def test_a_search_without_success_names_the_trial_that_lost_least(setup):
    """A metric that is the share of weights that are left, and no number on its first trial."""
    model, seen = setup[0], []
    budget = Budget(drop=0.0, tries=5, higher_is_better=True)

    def left(net):
        weights = [p for p in net.parameters() if p.ndim > 1]
        share = sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)
        seen.append(math.nan if len(seen) == 1 else share)
        return seen[-1]

    with pytest.raises(ValueError, match=r"^No density of the (\d+) that were tried") as caught:
        prunus.prune(model, "magnitude", budget, evaluate=left)
    nearest = max(value for value in seen[1:] if value == value)
    assert seen[0] == 1.0 > nearest
    said = f"within 0 of the dense network's 1: the nearest is {nearest:.4g} at density "
    assert said in str(caught.value)
    density = str(caught.value).split(said)[1].split(". ")[0]
    assert float(density) == pytest.approx(nearest, abs=0.01)  # whole weights of each layer
    assert f"the {len(seen) - 1} that were tried" in str(caught.value)


def test_bad_input(setup):
    model, x, evaluate, _ = setup

    def pruned(budget, recipe="magnitude", **given):
        return prunus.prune(model, recipe, budget, **{"evaluate": evaluate, **given})

    cases = [
        (lambda: Budget(metric="gap"), "exactly one target, got none"),
        (lambda: Budget(drop=0.1, density=0.5), "exactly one target, got density, drop"),
        (lambda: Budget(drop=-0.1), r"`drop` must be a finite number >= 0, got -0\.1"),
        (lambda: Budget(drop=math.nan), "`drop` must be a finite number"),
        (lambda: Budget(density=0.5, metric="gap"), "belong to a budget of `drop`, got one of den"),
        (lambda: Budget(drop=0.1, tries=1), "`tries` must be a whole number >= 2"),
        (lambda: pruned(Budget(drop=0.1), evaluate=None), "Pass evaluate="),
        (lambda: pruned(Budget(drop=0.1, metric="no")), "gives .'closeness', 'gap'., not 'no'"),
        (lambda: pruned(Budget(drop=0.1), evaluate=lambda m: math.nan), "dense network is nan"),
        (lambda: pruned(Budget(drop=0.0, metric="gap")), "No density of the .* keeps gap within 0"),
        (
            lambda: pruned(
                Budget(drop=0.1), prunus.Recipe(granularity=prunus.granularity.NM(2, 4))
            ),
            "fixes the density to 0.5, got Budget",
        ),
        (lambda: prunus.plan(model, Budget(density=0.5)), "takes a budget of drop, got one of den"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="A plan for a gap takes no evaluate"):
        prunus.plan(model, 0.1, data=x, evaluate=evaluate)
    with pytest.raises(TypeError, match="must return a number or a dict"):
        pruned(Budget(drop=0.1), evaluate=lambda m: "good")
    assert repr(Budget(density=0.5)) == (
        "Budget(density=0.5, parameters=None, macs=None, bytes=None, latency=None, gap=None, "
        "delta=0.05, kind='predicted')"
    )
