"""Plans that grow unit by unit, and the largest one that a budget admits."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.budget import Budget, share
from prunus.cost import Cost

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
    names = list(pools)
    values, owners, forced = [], [], []
    first = 0
    for name in names:
        scores = pools[name].detach().to("cpu", torch.float64)
        n_pools, n_units = scores.shape
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        values.append(scores.flatten())
        owners.append(torch.arange(n_pools).repeat_interleave(n_units) + first)
        forced.append((rank < minimum).flatten())
        first += n_pools
    value, owner, must = torch.cat(values), torch.cat(owners), torch.cat(forced)
    order = value.argsort(descending=True, stable=True)
    order = torch.cat([order[must[order]], order[~must[order]]])
    owner_in_order = owner[order]
    sizes = [pools[name].shape[0] for name in names]

    def plan_at(k: int) -> dict[str, Tensor]:
        counts = torch.bincount(owner_in_order[:k], minlength=first)
        return dict(zip(names, torch.split(counts, sizes), strict=True))

    return plan_at, int(must.sum()), len(value)


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
    names = list(pools)
    marks, owners, amounts = [], [], []
    start: dict[str, int] = {}
    for i, name in enumerate(names):
        n_pools, n_units = pools[name].shape
        size = n_pools * n_units
        first = min(size, -(-min(minimum, n_units) * n_pools // step) * step)
        start[name] = first
        ends = torch.arange(first + step, size + step, step).clamp(max=size)
        begins = torch.cat([torch.tensor([first]), ends[:-1]])[: len(ends)]
        marks.append(((begins + ends) / 2).to(torch.float64) / rates[name])
        amounts.append(ends - begins)
        owners.append(torch.full((len(ends),), i))
    order = torch.cat(marks).argsort(stable=True)
    owner, amount = torch.cat(owners)[order], torch.cat(amounts)[order]

    def plan_at(k: int) -> dict[str, Tensor]:
        added = torch.zeros(len(names), dtype=torch.int64).index_add_(0, owner[:k], amount[:k])
        plan = {}
        for name, more in zip(names, added.tolist(), strict=True):
            n_pools, n_units = pools[name].shape
            plan[name] = torch.tensor(share(start[name] + more, [n_units] * n_pools))
        return plan

    return plan_at, 0, len(order)


def short_of(kept: Kept, free: Growth, pools: Pools, minimum: int) -> tuple[str, ...]:
    """Names of the layers that a plan without the minimum, of as many units, leaves below it."""
    if minimum == 0:
        return ()
    plan_at, low, high = free
    total = sum(int(k.sum()) for k in kept.values())
    at = bisect_left(
        range(high), total, low, key=lambda k: sum(int(c.sum()) for c in plan_at(k).values())
    )
    plan = plan_at(at)
    return tuple(
        name for name, k in plan.items() if bool((k < min(minimum, pools[name].shape[1])).any())
    )
