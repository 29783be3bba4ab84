"""Plans that grow unit by unit, and the largest one that a budget admits."""

import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.budget import Budget, share
from prunus.cost import Cost
from prunus.ranking import counted, kth_largest

__all__ = [
    "CostOf",
    "Growth",
    "Kept",
    "Pools",
    "fits",
    "largest",
    "proportional_growth",
    "ranked_growth",
    "short_of",
    "spent_of",
]

Pools = Mapping[str, Float[Tensor, "pools units"]]
Kept = Mapping[str, Int[Tensor, " pools"]]
# The plan of step K, the step of the minimum and the last step.
Growth = tuple[Callable[[int], dict[str, Tensor]], int, int]


@runtime_checkable
class CostOf(Protocol):
    """The exact cost of whole numbers per pool.

    Attributes:
        nodes: True where units are channel classes, whose costs are coupled.
        multiple_of: kept classes of a group are a multiple of this, or all.
        shapes: the shape of every layer's weight, kernel axes included; empty for nodes.
        members: for each group of nodes the layers whose channels it holds; for edges, other
            names that mean a layer.
        refused: layers without units that could go, with the reasons.
    """

    @property
    def nodes(self) -> bool: ...

    @property
    def multiple_of(self) -> int: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def refused(self) -> Mapping[str, str]: ...

    def __call__(self, kept: Kept) -> Cost: ...


def fits(cost: Cost, budget: Budget) -> bool:
    """True where the cost is within the budget.

    Raises:
        ValueError: a budget of multiply-adds without an example to count them.
    """
    spent = spent_of(cost, budget)
    if spent is None:
        raise ValueError(
            "Counting multiply-adds needs an example input. Pass `data`, whose first batch serves."
        )
    return bool(spent <= budget.value + (1e-12 if budget.target == "density" else 0))


def spent_of(cost: Cost, budget: Budget) -> float | None:
    """What the cost takes of the budget's target."""
    name = "latency_share" if budget.target == "latency" else budget.target
    if budget.coder == "compressed":
        name = "compressed"
    spent: float | None = getattr(cost, name)
    return spent


def largest(
    plan_at: Callable[[int], Kept], low: int, high: int, cost: CostOf, budget: Budget
) -> int:
    """The largest step in [low, high] whose plan fits; `low` where none does. Costs must grow."""
    if fits(cost(plan_at(high)), budget):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(cost(plan_at(middle)), budget):
            low = middle
        else:
            high = middle
    return low


def ranked_growth(pools: Pools, minimum: int) -> Growth:
    """Plans that keep the K best units of all pools together.

    The `minimum` best units of every pool come first, so the minimum is met inside the total and
    is taken from the lowest-ranked units elsewhere. Ties go to the lower index.

    Returns:
        the plan of a given K, the number of units that are always kept, and their total number.
    """
    ranked = {name: _comparable(scores) for name, scores in pools.items()}
    total = sum(scores.numel() for scores in ranked.values())
    floors = {name: min(minimum, scores.shape[1]) for name, scores in ranked.items()}
    low = sum(len(scores) * floors[name] for name, scores in ranked.items())

    @functools.cache
    def forced() -> dict[str, Tensor]:
        """True for the best units of every pool, which come first."""
        every = {}
        for name, scores in ranked.items():
            rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            every[name] = rank < floors[name]
        return every

    @functools.lru_cache(maxsize=64)
    def plan_at(k: int) -> dict[str, Tensor]:
        plan = _best_of_all(ranked, None, k)
        if k >= low and all(bool((plan[name] >= floors[name]).all()) for name in ranked):
            return plan  # the best of every pool are among the best of all
        first = forced()
        if k < low:
            return _best_of_all(ranked, first, k)
        rest = _best_of_all(ranked, {name: ~must for name, must in first.items()}, k - low)
        return {name: rest[name] + counted(first[name]) for name in ranked}

    return plan_at, low, total


def _comparable(scores: Float[Tensor, "pools units"]) -> Float[Tensor, "pools units"]:
    """The scores where and as they can be compared exactly with those of other pools."""
    scores = scores.detach().to("cpu")
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.double()


def _joined(flat: list[Tensor]) -> Tensor:
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _best_of_all(
    pools: Pools, among: Mapping[str, Tensor] | None, k: int
) -> dict[str, Int[Tensor, " pools"]]:
    """How many of the k best units of all pools lie in each; ties go to the lower index.

    Args:
        pools: scores.
        among: True for the units that take part; all where None.
        k: how many.
    """
    if k == 0:
        return {n: torch.zeros(len(s), dtype=torch.int64) for n, s in pools.items()}
    kinds = {scores.dtype for scores in pools.values()}
    flat = [s.flatten() if len(kinds) == 1 else s.double().flatten() for s in pools.values()]
    taking = None if among is None else _joined([among[name].flatten() for name in pools])
    edge = kth_largest(_joined(flat), k, taking)
    plan, level = {}, {}
    for name, scores in pools.items():
        above, same = scores > edge, scores == edge
        if bool(edge.isnan()):  # NaN ranks above all numbers, and is level with itself
            above, same = torch.zeros_like(above), scores.isnan()
        elif bool(torch.isnan(scores.sum())):  # as a sum of both infinities is, too
            above |= scores.isnan()
        if among is not None:
            above, same = above & among[name], same & among[name]
        plan[name], level[name] = counted(above), counted(same)
    left = k - sum(int(counts.sum()) for counts in plan.values())
    for name, counts in level.items():  # in order of their index
        before = counts.cumsum(0) - counts
        took = (left - before).clamp(min=0).minimum(counts)
        plan[name], left = plan[name] + took, left - int(took.sum())
    return plan


def proportional_growth(
    pools: Pools, rates: Mapping[str, float], minimum: int, step: int = 1
) -> Growth:
    """Plans whose layers grow in proportion to `rates`, until they are full.

    The j-th further unit of a layer joins when the level · rate reaches j + 1/2, so every plan
    holds the one before it. The pools of a layer share by largest remainder.

    Args:
        pools: scores per pool by name; only their sizes count.
        rates: of every layer.
        minimum: units that every pool has in the first plan.
        step: units that join together.

    Returns:
        the plan of the k-th step, the first step and the last.
    """
    shapes = [tuple(scores.shape) for scores in pools.values()]
    first = torch.tensor([
        min(n * units, -(-min(minimum, units) * n // step) * step) for n, units in shapes
    ])  # fmt: skip
    size = torch.tensor([n * units for n, units in shapes])
    steps = (size - first + step - 1) // step
    layer = torch.arange(len(shapes)).repeat_interleave(steps)
    begin = torch.arange(len(layer)) - (steps.cumsum(0) - steps)[layer]
    begin = first[layer] + begin * step
    end = torch.minimum(begin + step, size[layer])
    rate = torch.tensor([float(rates[name]) for name in pools], dtype=torch.float64)
    order = (((begin + end) / 2).to(torch.float64) / rate[layer]).argsort(stable=True)
    owner, amount = layer[order], (end - begin)[order]

    def plan_at(k: int) -> dict[str, Tensor]:
        counts = first.index_add(0, owner[:k], amount[:k])
        return {
            name: own if n == 1 else torch.tensor(share(int(own), [units] * n))
            for name, own, (n, units) in zip(pools, counts[:, None], shapes, strict=True)
        }

    return plan_at, 0, len(order)


def short_of(kept: Kept, free: Growth, pools: Pools, minimum: int) -> tuple[str, ...]:
    """Names of the layers that a plan without the minimum, of as many units, leaves below it."""
    if minimum == 0:
        return ()
    plan_at, low, high = free
    total = sum(int(k.sum()) for k in kept.values())

    def units(k: int) -> int:
        return sum(int(c.sum()) for c in plan_at(k).values())

    at = total  # where every step adds one unit
    if not (low <= total <= high and units(total) == total):
        at = bisect_left(range(high), total, low, key=units)
    plan = plan_at(at)
    return tuple(
        name for name, k in plan.items() if bool((k < min(minimum, pools[name].shape[1])).any())
    )
