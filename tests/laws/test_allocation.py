"""The laws of allocations, over the whole table, and each against an independent reference."""

import functools
import itertools
import math
import re
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws.families import instances
from models import build
from prunus.allocation import (
    ALLOCATIONS,
    ERK,
    LAMP,
    Global,
    LeastVariance,
    Planned,
    Uniform,
    lamp_scores,
)
from prunus.budget import Budget
from prunus.cost import anatomy
from prunus.coupling import couple
from prunus.engine.edges import EdgeCost
from prunus.engine.groups import NodeCost
from prunus.recipe import parse

RULES = instances(ALLOCATIONS)
each = pytest.mark.parametrize("name", RULES)
EDGES_ONLY = ("ERK", "LeastVariance", "Planned")
MODEL, X = build("cnn-relu")
COST = EdgeCost(anatomy(MODEL, lambda: len(MODEL(X))))
NAMES = ("conv1", "conv2", "fc1", "fc2")


def pools_of(rows=False, seed=0, tied=False):
    generator = torch.Generator().manual_seed(seed)
    pools = {}
    for name in NAMES:
        weight = MODEL.get_submodule(name).weight.flatten(1)
        scores = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        scores = torch.ones_like(scores) if tied else scores
        pools[name] = scores if rows else scores.reshape(1, -1)
    return pools


def total_of(plan):
    return sum(k if isinstance(k, int) else sum(k) for k in plan.kept.values())


SIZE = sum(p.numel() for p in pools_of().values())


@each
@given(
    density=st.one_of(st.sampled_from([0.9, 1.0, 0.001, 0.5]), st.floats(0.01, 1.0)),
    rows=st.booleans(),
    tied=st.booleans(),
    seed=st.integers(0, 5),
)
@settings(max_examples=12)
def test_density(name, density, rows, tied, seed):
    pools = pools_of(rows, seed, tied)
    before = {k: v.clone() for k, v in pools.items()}
    plan = RULES[name](pools, COST, Budget(density=density))
    again = RULES[name](pools, COST, Budget(density=density))
    assert plan.kept == again.kept
    assert all(torch.equal(before[k], pools[k]) for k in pools)
    assert list(plan.kept) == list(pools)
    floor = sum(len(p) for p in pools.values())  # one unit in every pool
    exact = Fraction(repr(density))
    if name == "Uniform":
        each_layer = [int(exact * p.numel() + Fraction(1, 2)) for p in pools.values()]
        asked = sum(each_layer)
        expected = sum(max(k, len(p)) for k, p in zip(each_layer, pools.values(), strict=True))
    else:
        asked = int(exact * SIZE + Fraction(1, 2))
        expected = max(asked, floor)
    assert total_of(plan) == expected
    assert plan.feasible == (expected <= asked)
    for key, counts in plan.kept.items():
        for k in [counts] if isinstance(counts, int) else counts:
            assert 1 <= k <= pools[key].shape[1]


@each
@pytest.mark.parametrize("target", ["parameters", "macs", "bytes"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.77])
def test_other_budgets_are_used_up_to_one_unit(name, target, share):
    pools = pools_of()
    full = COST({k: torch.tensor([p.numel()]) for k, p in pools.items()})
    limit = int(getattr(full, target) * share)
    plan = RULES[name](pools, COST, Budget(**{target: limit}))
    kept = {k: torch.tensor([v]) for k, v in plan.kept.items()}
    spent = getattr(COST(kept), target)
    assert plan.value == spent
    least = getattr(COST({k: torch.tensor([1]) for k in pools}), target)
    if least > limit:
        assert not plan.feasible
        assert plan.notes[-1] == f"the minimum of every pool alone exceeds the budget of {target}"
        return
    assert plan.feasible
    # one more unit, wherever it is cheapest, would reach at most what one unit costs beyond
    dearest = max(
        getattr(COST(kept | {k: kept[k] + 1}), target) - spent
        for k in pools
        if int(kept[k]) < pools[k].numel()
    )
    assert spent <= limit < spent + dearest + 1


@each
def test_a_minimum_of_zero_lets_layers_collapse_and_bad_ones_are_refused(name):
    pools = pools_of()
    pools["conv1"] = pools["conv1"] * 1e-6  # ranks below all others
    free = replace(RULES[name], minimum=0)(pools, COST, Budget(density=0.001))
    held = RULES[name](pools, COST, Budget(density=0.001))
    assert min(free.kept.values()) == 0 or name == "LAMP"  # its best unit always scores 1
    assert min(held.kept.values()) == 1
    for wrong in (-1, 1.5):
        message = f"`minimum` must be a whole number >= 0, got {wrong}."
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            replace(RULES[name], minimum=wrong)


def test_global_takes_the_minimum_from_the_lowest_ranked_elsewhere():
    pools = {
        "fc1": torch.tensor([[9.0, 8.0, 7.0, 6.0]]),
        "fc2": torch.tensor([[0.3, 0.2, 0.1, 0.0]]),
    }

    class Count:
        nodes, multiple_of, shapes, members, refused = False, 1, {}, {}, {}

        def __call__(self, kept):
            cost = COST({})
            density = sum(int(k.sum()) for k in kept.values()) / 8
            return type(cost)(density=density, model_density=1.0, parameters=0, macs=0, bytes=0)

    plan = Global()(pools, Count(), Budget(density=0.5))
    assert plan.kept == {"fc1": 3, "fc2": 1}
    assert plan.notes == ("the minimum of 1 per pool binds in fc2",)
    assert Global(minimum=0)(pools, Count(), Budget(density=0.5)).kept == {"fc1": 4, "fc2": 0}
    assert Global(minimum=2)(pools, Count(), Budget(density=0.5)).kept == {"fc1": 2, "fc2": 2}
    tight = Global(minimum=3)(pools, Count(), Budget(density=0.5))
    assert tight.kept == {"fc1": 3, "fc2": 3}
    assert not tight.feasible


@functools.cache  # tracing takes its time, and nothing changes what it gives
def node_pools(name="mlp-relu", seed=0):
    model, x = build(name)
    groups = couple(model, x).groups
    generator = torch.Generator().manual_seed(seed)
    pools = {g.name: torch.rand(1, g.size, generator=generator) for g in groups}
    return pools, NodeCost(anatomy(model, lambda: len(model(x))), groups)


def prefixes(name, pools):
    """Every plan of the family, from none removed but the minimum to none removed at all."""
    sizes = {k: p.shape[1] for k, p in pools.items()}
    if name == "Uniform":
        order = sorted(
            ((j + 0.5) / sizes[k], i, k) for i, k in enumerate(pools) for j in range(1, sizes[k])
        )
    else:
        scores = {k: lamp_scores(p) if name == "LAMP" else p for k, p in pools.items()}
        ranked = {k: sorted(p[0].tolist(), reverse=True) for k, p in scores.items()}
        order = sorted(
            (-ranked[k][j], i, k) for i, k in enumerate(pools) for j in range(1, sizes[k])
        )
    plan = dict.fromkeys(pools, 1)
    yield dict(plan)
    for _, _, k in order:
        plan[k] += 1
        yield dict(plan)


@pytest.mark.parametrize("name", [n for n in RULES if n not in EDGES_ONLY])
@pytest.mark.parametrize("net", ["mlp-relu", "cnn-relu"])
@pytest.mark.parametrize(
    ("target", "share"),
    list(itertools.product(["density", "parameters", "macs", "bytes"], [0.02, 0.3, 0.9, 1.0])),
)
def test_nodes_are_the_largest_plan_whose_cost_fits(name, net, target, share):
    pools, cost = node_pools(net)
    full = cost({k: torch.tensor([p.shape[1]]) for k, p in pools.items()})
    limit = share if target == "density" else int(getattr(full, target) * share)
    plan = RULES[name](pools, cost, Budget(**{target: limit}))
    fitting = [
        p
        for p in prefixes(name, pools)
        if getattr(cost({k: torch.tensor([v]) for k, v in p.items()}), target) <= limit
    ]
    best = fitting[-1] if fitting else dict.fromkeys(pools, 1)
    assert plan.kept == best
    assert plan.feasible == bool(fitting)


@pytest.mark.parametrize("name", ["Uniform", "Global"])
@pytest.mark.parametrize("multiple", [2, 4, 7])
def test_multiples(name, multiple):
    pools, cost = node_pools()
    cost = NodeCost(cost.sizes, cost.groups, multiple_of=multiple)
    for density in (0.05, 0.3, 0.5, 0.8, 1.0):
        plan = RULES[name](pools, cost, Budget(density=density))
        for key, k in plan.kept.items():
            assert k % multiple == 0 or k == pools[key].shape[1]
        assert not plan.feasible or plan.density <= density
    empty = replace(RULES[name], minimum=0)(pools, cost, Budget(density=0.001))
    assert set(empty.kept.values()) == {0}


def test_erk_is_its_definition():
    shapes = {k: tuple(MODEL.get_submodule(k).weight.shape) for k in NAMES}
    for density in (0.05, 0.2, 0.5, 0.8):
        plan = ERK()(pools_of(), COST, Budget(density=density))
        # by bisection on ε instead of solving for it
        low, high = 0.0, 1e6
        sizes = {k: torch.Size(s).numel() for k, s in shapes.items()}
        for _ in range(200):
            eps = (low + high) / 2
            wanted = {k: min(eps * sum(s), sizes[k]) for k, s in shapes.items()}
            low, high = (eps, high) if sum(wanted.values()) < density * SIZE else (low, eps)
        for key, k in plan.kept.items():
            assert abs(k - wanted[key]) < 1.5  # the total is rounded, and so is every part
        assert total_of(plan) == int(density * SIZE + 0.5)


@pytest.mark.parametrize("name", EDGES_ONLY)
def test_rules_for_single_weights_refuse_nodes(name):
    message = f"{name}() shares single weights among layers, got nodes. Use Uniform() or Global()."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RULES[name](*node_pools(), Budget(density=0.5))


def test_least_variance_keeps_what_one_rate_for_all_layers_expects():
    pools = pools_of(rows=True)
    pools = {k: p * 10.0 ** (i - 2) for i, (k, p) in enumerate(pools.items())}
    for density in (0.3, 0.62):
        plan = LeastVariance(smallest=0.1, minimum=0)(pools, COST, Budget(density=density))
        low, high = 0.0, 1e6  # λ by plain bisection
        for _ in range(64):
            rate = (low + high) / 2
            odds = [(rate * row).clamp(0.1, 1).sum().item() for p in pools.values() for row in p]
            low, high = (rate, high) if sum(odds) < density * SIZE else (low, rate)
        whole = [int(expected) for expected in odds]
        left = sorted(range(len(odds)), key=lambda i: whole[i] - odds[i])  # largest remainders
        for i in left[: int(density * SIZE + 0.5) - sum(whole)]:
            whole[i] += 1
        assert [count for counts in plan.kept.values() for count in counts] == whole
    with pytest.raises(
        ValueError, match=r"^sampling in proportion needs scores >= 0, got -1\. Use a sco"
    ):
        LeastVariance()({"fc": torch.tensor([[1.0, -1.0]])}, COST, Budget(density=0.5))


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5]), min_size=1, max_size=12),
    st.sampled_from([1.0, 2.0]),
)
def test_lamp_scores_are_their_definition(values, power):
    scores = torch.tensor([values], dtype=torch.float64)
    found = lamp_scores(scores, power)[0].tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    for place, i in enumerate(order):
        held = sum(values[j] ** power for j in order[: place + 1])
        assert found[i] == pytest.approx(values[i] ** power / held if held else 0.0)


def test_lamp_sees_a_layer_as_a_whole_and_its_scale_does_not_matter():
    pools = pools_of(rows=True)
    flat = {k: p.reshape(1, -1) for k, p in pools.items()}
    for k in pools:
        assert torch.equal(lamp_scores(pools[k]).flatten(), lamp_scores(flat[k]).flatten())
    scaled = {k: p * 10.0**i for i, (k, p) in enumerate(flat.items())}
    budget = Budget(density=0.2)
    assert LAMP()(flat, COST, budget).kept == LAMP()(scaled, COST, budget).kept
    assert Global()(flat, COST, budget).kept != Global()(scaled, COST, budget).kept
    removed = lamp_scores(torch.tensor([[3.0, -torch.inf, 4.0]]))
    assert removed.tolist() == [[pytest.approx(9 / 25), -torch.inf, 1.0]]
    with pytest.raises(ValueError, match=r"^LAMP\(\) needs scores >= 0, got -1\. Use a score such"):
        lamp_scores(torch.tensor([[1.0, -1.0]]))


def test_uniform_reports_where_the_minimum_binds():
    plan = Uniform()(pools_of(rows=True), COST, Budget(density=0.06))
    assert plan.notes[0] == "the minimum of 1 per pool binds in fc2"
    assert Uniform()(pools_of(rows=True), COST, Budget(density=0.5)).notes == ()
    rows = sum(len(p) for p in pools_of(rows=True).values())
    others = COST({k: torch.zeros(1, dtype=torch.int64) for k in NAMES}).parameters
    bound = "the minimum of 1 per pool binds in conv1, fc2"
    for spare, named in ((2, True), (SIZE // 2, False)):  # two weights beside one in each row
        plan = Uniform()(pools_of(rows=True), COST, Budget(parameters=others + rows + spare))
        assert total_of(plan) == rows + spare
        assert (plan.notes[:1] == (bound,)) == named


def small_curves(generator, sizes):
    """Convex error curves at every count, from measured-looking gaps to 0."""
    curves = {}
    for name, size in sizes.items():
        drops = torch.rand(size, generator=generator, dtype=torch.float64).sort().values.tolist()
        curves[name] = [(k, math.fsum(drops[: size - k])) for k in range(size + 1)]
    return curves


@pytest.mark.parametrize("seed", range(5))
def test_planned_leaves_the_least_error(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"conv1": 5, "conv2": 4, "fc1": 6}
    curves = small_curves(generator, sizes)
    pools = {k: torch.rand(1, n, generator=generator) for k, n in sizes.items()}
    by_count = {k: dict(c) for k, c in curves.items()}
    every = list(itertools.product(*(range(1, n + 1) for n in sizes.values())))

    def error(counts):
        return math.fsum(by_count[k][c] for k, c in zip(sizes, counts, strict=True))

    for total in range(3, 16):
        plan = Planned(curves)(pools, COST, Budget(density=total / 15))
        best = min(error(c) for c in every if sum(c) == total)
        assert error(plan.kept.values()) == pytest.approx(best)
        assert sum(plan.kept.values()) == total
    for gap in (0.0, 0.5, 1.0, 1.5):
        if gap:
            plan = Planned(curves)(pools, COST, Budget(gap=gap))
            best = min(sum(c) for c in every if error(c) <= gap**2)
            assert error(plan.kept.values()) <= gap**2 + 1e-12
            assert plan.value == pytest.approx(error(plan.kept.values()) ** 0.5)
            assert sum(plan.kept.values()) <= best + 1  # a layer may also end empty


def test_planned_curves_are_checked_and_come_back_from_text():
    given = Planned({"fc": [(3, 1.0), (1, 2.5)]})
    assert given.curves == (("fc", ((1, 2.5), (3, 1.0))),)
    assert parse(repr(given)) == given
    assert parse(repr(Planned())) == Planned()
    pools = {"fc": torch.rand(1, 4), "other": torch.rand(1, 4)}
    with pytest.raises(ValueError, match=r"^Planned\(\) has no error curve for 'other'"):
        given(pools, COST, Budget(density=0.5))
    with pytest.raises(ValueError, match=r"^The error curve of 'fc' must be \(kept, error\), …"):
        Planned({"fc": [(3, -1.0)]})
    with pytest.raises(ValueError, match=r"^The error curve of 'fc' leaves its 2 units\."):
        given({"fc": torch.rand(1, 2)}, COST, Budget(density=0.5))
