"""Plans that grow unit by unit, and the largest one that a budget admits."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.budget import Budget
from prunus.cost import Cost

__all__ = ["CostOf", "Growth", "Kept", "Pools", "fits", "largest", "ranked_growth", "spent_of"]

Pools = Mapping[str, Float[Tensor, "pools units"]]
Kept = Mapping[str, Int[Tensor, " pools"]]
# The plan of step K, the step of the minimum and the last step.
Growth = tuple[Callable[[int], dict[str, Tensor]], int, int]


class CostOf(Protocol):
    """The exact cost of whole numbers per pool.

    Attributes:
        nodes: True where units are channel classes, whose costs are coupled.
        multiple_of: kept classes of a group are a multiple of this, or all.
    """

    @property
    def nodes(self) -> bool: ...

    @property
    def multiple_of(self) -> int: ...

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
