"""Plans: against brute force, never worse than uniform, and the shapes theory demands."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from prunus.guarantee.answer import planned
from prunus.guarantee.family import EdgeFamily
from prunus.guarantee.solve import Problem
from prunus.rows import rows_of
from prunus.theory.gap.apriori import sup_bound
from prunus.theory.gap.plan import allocate, dual_bound, pruned_grid, sup_plan
from reference.gap import best_plan


def instance(rng, layers=3, options=12):
    costs, errors = [], []
    for _ in range(layers):
        total = rng.integers(50, 1000)
        costs.append(np.sort(rng.random(options) * total)[::-1])
        errors.append(np.concatenate([[0.0], np.sort(rng.random(options - 1))]))
    return costs, errors


def test_against_brute_force():
    """200 instances: always feasible, at most 9 % (mean 0.5 %) above the optimum."""
    rng = np.random.default_rng(0)
    excess = []
    for _ in range(200):
        costs, errors = instance(rng)
        budget = float(rng.random() * 2)
        found = allocate(costs, errors, budget)
        best = best_plan(costs, errors, budget)
        assert found.error <= budget
        assert found.dual <= best * (1 + 1e-9)
        assert best <= found.cost * (1 + 1e-12)
        excess.append(found.cost / best - 1)
        uniform = min(
            sum(c[g] for c in costs) for g in range(12) if sum(e[g] for e in errors) <= budget
        )
        assert found.cost <= uniform * (1 + 1e-12)
    assert max(excess) <= 0.09
    assert float(np.mean(excess)) <= 0.005


def test_concave_curves_go_to_extremes_and_convex_ones_do_not():
    q = np.concatenate([[0.0], np.linspace(0.01, 1, 100)])
    totals = [1000, 700, 400]
    costs = [n * (1 - q) for n in totals]
    concave = allocate(costs, [np.sqrt(q)] * 3, 1.1).choices
    inner = [g for g in concave if 0 < g < 100]
    assert len(inner) <= 1
    convex = allocate(costs, [q**1.5] * 3, 0.9).choices
    assert all(0 < g < 100 for g in convex)


def test_no_budget_prunes_nothing_and_bad_curves_are_refused():
    rng = np.random.default_rng(1)
    costs, errors = instance(rng)
    assert allocate(costs, errors, 0.0).choices == (0, 0, 0)
    assert dual_bound(costs, errors, 0.0) <= sum(c[0] for c in costs)
    with pytest.raises(ValueError, match="start with an option of error 0"):
        allocate(costs, [e + 1 for e in errors], 1.0)
    with pytest.raises(ValueError, match="`budget` must be"):
        allocate(costs, errors, -1.0)


@pytest.mark.parametrize(
    ("method", "share", "gain"),
    [
        ("magnitude", 0.01, 1.65),
        ("magnitude", 0.03, 1.53),
        ("magnitude", 0.1, 1.44),
        ("magnitude", 0.3, 1.39),
        ("random", 0.3, 25.0),
    ],
)
def test_sup_plan_beats_uniform(method, share, gain):
    """Widths 784-1000-500-10, He uniform, limit in shares of the product of the layers' norms.

    The gain of magnitude pruning falls with the limit, as all layers near their ends; the plans
    are within 1.5 % of what a continuous search finds.
    """
    widths, sizes = [784, 1000, 500, 10], [784000, 500000, 5000]
    limit = share * 13.4
    plan = sup_plan(widths, limit, method=method)
    assert sup_bound(widths, plan, method=method, route="product").value <= limit
    pruned = sum((1 - p) * n for p, n in zip(plan, sizes, strict=True)) / sum(sizes)

    def fits(shares):
        kept = [1 - q for q in shares]
        return sup_bound(widths, kept, method=method, route="product").value <= limit

    def deepest(shares):
        """The largest q that fits in the place of None."""
        low, high = 0.0, 1.0
        for _ in range(25):
            q = (low + high) / 2
            low, high = (q, high) if fits([q if s is None else s for s in shares]) else (low, q)
        return low

    uniform = deepest([None] * 3)
    print(f"{method}: pruned {pruned:.4f} against {uniform:.4f}, factor {pruned / uniform:.2f}")
    assert pruned >= gain * uniform
    if method == "magnitude":  # the second layer elsewhere, the first as far as it then goes
        second = 1 - plan[1]
        tried = [
            (784000 * deepest([None, second * factor, 0.0]) + 500000 * second * factor) / sum(sizes)
            for factor in (0.7, 0.8, 0.9, 1.1, 1.2)
        ]
        assert pruned >= max(tried) / 1.015


def test_plan_is_monotone_in_the_limit():
    widths = [60, 50, 10]
    kept = [
        sum(p * n for p, n in zip(sup_plan(widths, e), (3000, 500), strict=True))
        for e in (0.0, 0.1, 0.5, 1.0, 3.0)
    ]
    assert kept[0] == 3500
    assert all(a >= b for a, b in itertools.pairwise(kept))


def test_grid_starts_with_nothing_pruned():
    grid = pruned_grid()
    assert grid[0] == 0
    assert grid[-1] == pytest.approx(1)
    assert math.isclose(grid[1], 1e-5)


def test_a_network_of_a_family_does_not_depend_on_those_asked_for_before():
    """Weights and biases are the made ones, or whole, in any order; the model stays as it is."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def make(name, count):
        weight = before[f"{name}.weight"] * count
        return weight, torch.full((2,), float(count)) if count % 2 else None

    family = EdgeFamily(model, {"0": 6, "1": 4}, make, method="by hand")
    for _ in range(40):
        kept = {"0": int(torch.randint(7, (), generator=generator))}
        if kept["0"] % 3:
            kept["1"] = int(torch.randint(5, (), generator=generator))
        found = family.network(kept).state_dict()
        for name, size in family.sizes.items():
            count = kept.get(name, size)
            factor = count if count < size else 1
            assert torch.equal(found[f"{name}.weight"], before[f"{name}.weight"] * factor)
        moved = kept["0"] % 2 and kept["0"] < 6
        expected = torch.full((2,), float(kept["0"])) if moved else before["0.bias"]
        assert torch.equal(found["0.bias"], expected)
        assert family.cost(kept) == kept["0"] + kept.get("1", 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


LOST = {"a": {4: 0.0, 2: 1.0, 1: 4.5}, "b": {4: 0.0, 3: 1.0, 1: 9.0}}
PREDICTED = "a prediction from the planning data: certify on fresh data"
BOUND = "a bound on the planning data; fresh data need a held-out statement"


@pytest.mark.parametrize(
    ("kind", "said"), [("predicted", (PREDICTED,)), ("mean_square", (BOUND,)), ("sup", ())]
)
def test_a_plan_says_what_its_value_is_worth(kind, said):
    """Least kept weights within a limit in units of 2, by hand; what no plan meets is said."""
    problem = Problem(
        kept={name: np.array(list(errors)) for name, errors in LOST.items()},
        errors=[np.array(list(errors.values())) for errors in LOST.values()],
        exact=lambda kept: math.sqrt(sum(LOST[name][k] for name, k in kept.items())),
        cost=lambda kept: float(sum(kept.values())),
        squared=True,
    )
    asked, checked = rows_of([]), []

    def plan(limit, density=None):
        return planned(problem, limit, kind, 2.0, density, ("first",), asked, checked.append)

    found = plan(1.0)  # 2² = 4 of error
    assert (found.kept, found.value, found.density) == ({"a": 2, "b": 3}, 2**0.5 / 2, 5 / 8)
    assert (found.notes, found.feasible, found.limit) == (("first", *said), True, 1.0)
    assert found.kind == kind
    assert found.rows is asked
    assert checked == [found.kept]
    whole = plan(0.4)  # 0.8² = 0.64
    assert (whole.kept, whole.value) == ({"a": 4, "b": 4}, 0.0)
    assert whole.notes[-1] == "no pruning of the grid meets the limit: nothing is pruned"
    assert plan(1.0, 5 / 8).kept == found.kept
    missed = plan(1.0, 0.5)
    assert (missed.kept, missed.feasible) == ({"a": 1, "b": 3}, False)
    assert missed.value == pytest.approx(5.5**0.5 / 2)
    assert missed.notes[-1].startswith("no plan that keeps at most 0.5 of the weights meets the")
