"""Global(per=…): units ranked by their score for what they save."""

import itertools
from dataclasses import replace

import pytest
import torch

import prunus
from models import build
from prunus.allocation import Global
from prunus.allocation.priced import priced_growth
from prunus.cost import Cost
from prunus.granularity import Edge, Node
from prunus.recipe import Recipe, parse
from prunus.scores import Constant, Gate, Magnitude

RANGES = (range(5), range(4), range(4))


class Additive:
    """Costs that are fixed for each group's classes."""

    nodes, multiple_of, shapes, members, refused = True, 1, {}, {}, {}

    def __init__(self, prices):
        self.prices = prices

    def __call__(self, kept):
        spent = sum(self.prices[name] * int(k.sum()) for name, k in kept.items())
        return Cost(
            parameters=spent, macs=spent, bytes=spent, density=1.0, model_density=1.0,
            latency=None, latency_share=None,
        )  # fmt: skip


def test_plans_are_greedy_knapsacks():
    """Within one class of the best, by enumeration; and along the ratio exactly."""
    generator = torch.Generator().manual_seed(0)
    prices = {"a": 1, "b": 3, "c": 7}
    pools = {
        name: torch.rand(1, n, generator=generator) for name, n in (("a", 4), ("b", 3), ("c", 3))
    }
    cost = Additive(prices)
    plan_at, low, high = priced_growth(pools, 0, cost, "macs")
    assert (low, high) == (0, 10)
    best = {name: s[0].sort(descending=True).values.cumsum(0).tolist() for name, s in pools.items()}

    def worth(counts):
        return sum(best[n][k - 1] for n, k in counts.items() if k)

    for k in range(high + 1):
        counts = {name: int(kept) for name, kept in plan_at(k).items()}
        assert sum(counts.values()) == k
        spent = int(cost(plan_at(k)).macs)
        every = (dict(zip("abc", own, strict=True)) for own in itertools.product(*RANGES))
        affordable = [o for o in every if sum(prices[n] * c for n, c in o.items()) <= spent]
        bound = max(map(worth, affordable))
        ratio = max(float(s.max()) / prices[n] for n, s in pools.items())
        assert worth(counts) >= bound - ratio * max(prices.values())
        if k:  # the class that joins last has the least ratio of all that are in
            before = {name: int(kept) for name, kept in plan_at(k - 1).items()}
            (joined,) = [n for n in counts if counts[n] != before[n]]
            own = [
                float(s[0].sort(descending=True).values[counts[n] - 1]) / prices[n]
                for n, s in pools.items()
                if counts[n]
            ]
            last = pools[joined][0].sort(descending=True).values[counts[joined] - 1]
            assert float(last) / prices[joined] == pytest.approx(min(own))


@pytest.mark.parametrize("per", ["macs", "parameters"])
def test_node_plans_meet_the_budget_and_keep_the_minimum(per):
    model, x = build("cnn-relu")
    data = (x, torch.arange(len(x)) % 4)
    dense = prunus.prune(model, Recipe(granularity=Node()), 1.0, data=data).cost_after
    recipe = Recipe(granularity=Node(), score=Gate(), allocation=Global(minimum=2, per=per))
    budget = prunus.Budget(**{per: int(getattr(dense, per) * 0.5)})
    pruned = prunus.prune(model, recipe, budget, data=data)
    assert getattr(pruned.cost_after, per) <= budget.value
    assert min(k if isinstance(k, int) else min(k) for k in pruned.plan.kept.values()) >= 2
    # Where all classes are worth the same, what they save decides alone.
    alike = replace(recipe, score=Constant())
    plans = [
        dict(prunus.prune(model, one, prunus.Budget(macs=dense.macs // 2), data=data).plan.kept)
        for one in (alike, replace(alike, allocation=Global(minimum=2)))
    ]
    assert per == "parameters" or plans[0] != plans[1]


def test_weights_are_ranked_by_their_multiply_adds():
    """A weight of the first convolution costs 64 products, one of a linear layer a single one."""
    model, x = build("cnn-relu")
    recipe = Recipe(granularity=Edge(), score=Magnitude(), allocation=Global(per="macs"))
    pruned = prunus.prune(model, recipe, 0.3, data=x)
    plain = prunus.prune(model, "magnitude-global", 0.3, data=x)
    total = sum(r.mask.numel() for r in plain.layers.values())
    kept = {n: int(r.mask.sum()) for n, r in pruned.layers.items()}
    assert sum(kept.values()) == sum(int(r.mask.sum()) for r in plain.layers.values()) < total
    assert kept["conv1"] < int(plain.layers["conv1"].mask.sum())
    assert pruned.cost_after.macs < plain.cost_after.macs
    # In a network of linear layers every weight costs one product: nothing changes.
    mlp, z = build("mlp-relu")
    one = prunus.prune(mlp, recipe, 0.3, data=z)
    other = prunus.prune(mlp, "magnitude-global", 0.3, data=z)
    assert all(torch.equal(m, other.masks[n]) for n, m in one.masks.items())


def test_text_and_refusals():
    assert repr(Global()) == "Global(minimum=1)"
    assert parse(repr(Global(per="macs"))) == Global(per="macs")
    with pytest.raises(ValueError, match=r"^Unknown cost to rank by 'bytes'"):
        Global(per="bytes")
    model, x = build("mlp-relu")
    edges = Recipe(allocation=Global(per="latency"))
    with pytest.raises(ValueError, match=r"^Zeros inside a dense weight save no time"):
        prunus.prune(model, edges, 0.3, data=x)
    negative = Recipe(score=lambda layer: -layer.weight.abs(), allocation=Global(per="parameters"))
    with pytest.raises(ValueError, match=r"must be >= 0, got -"):
        prunus.prune(model, negative, 0.3, data=x)
    with pytest.raises(ValueError, match=r"^Ranking by macs needs `data`"):
        prunus.prune(model, Recipe(allocation=Global(per="macs")), 0.3)
    nodes = Recipe(granularity=Node(), score=Magnitude(), allocation=Global(per="latency"))
    with pytest.raises(ValueError, match=r"^Ranking by latency needs a Budget\(latency"):
        prunus.prune(model, nodes, 0.5, data=x)
