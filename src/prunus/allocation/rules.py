"""The allocations: uniform over layers, and global over all units."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from prunus.allocation.growth import (
    CostOf,
    Kept,
    Pools,
    fits,
    largest,
    proportional_growth,
    ranked_growth,
    short_of,
    spent_of,
)
from prunus.allocation.priced import checked_cost, priced_growth, priced_scores
from prunus.budget import Budget, Plan, count_of, share
from prunus.check import whole
from prunus.parts import LATER, UNITS, AllocationFacts, shown

__all__ = ["Allocation", "Global", "Uniform", "bound_notes", "counts_in_plan", "plan_of"]


@runtime_checkable
class Allocation(AllocationFacts, Protocol):
    """The call of every allocation; the plan's cost is within the budget where that can be."""

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan: ...

    def measured(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> "Allocation":
        """Itself with the (kept, error) curves of all layers, where `measures_curves` asks."""
        return self


def plan_of(
    kept: Kept,
    cost: CostOf,
    budget: Budget,
    notes: tuple[str, ...] = (),
    *,
    asked: int | None = None,
) -> Plan:
    """A plan with its density and what it reaches of the budget.

    Args:
        kept: whole numbers per pool.
        cost: of any such numbers.
        budget: what was to be met.
        notes: what the reader should know.
        asked: for a density of single weights, the number of them that it comes to.
    """
    price = cost(kept)
    value = spent_of(price, budget)
    if budget.target == "density" and not cost.nodes:
        # Met by rounding, so it may lie half a unit above.
        met = asked is None or sum(int(k.sum()) for k in kept.values()) <= asked
    else:
        met = fits(price, budget)
    if not met:
        notes = (*notes, f"the minimum of every pool alone exceeds the budget of {budget.target}")
    return Plan(
        kept=counts_in_plan(kept),
        density=price.density,
        limit=budget.value,
        kind=budget.target,
        value=math.nan if value is None else float(value),
        feasible=met,
        notes=notes,
    )


def counts_in_plan(kept: Kept) -> dict[str, int | tuple[int, ...]]:
    """Whole numbers per pool as a plan has them: one number where there is one pool."""
    return {
        name: int(k[0]) if len(k) == 1 else tuple(int(v) for v in k) for name, k in kept.items()
    }


def bound_notes(names: tuple[str, ...], minimum: int) -> tuple[str, ...]:
    """The note that the minimum binds."""
    return (f"the minimum of {minimum} per pool binds in {', '.join(names)}",) if names else ()


@dataclass(frozen=True)
class Uniform(Allocation):
    """Every layer keeps the same share of its units.

    For a density of single weights each layer keeps floor(density · total + 1/2), its pools
    sharing by largest remainder. For nodes, and for every other budget, it is the largest plan of
    equal shares whose exact cost is within the budget.

    Attributes:
        minimum: units that every pool keeps at least; 0 lets layers collapse.
    """

    minimum: int = 1
    reads_scores: ClassVar[bool] = False
    serves: ClassVar[tuple[str, ...]] = UNITS

    def __post_init__(self) -> None:
        whole("minimum", self.minimum, low=0)

    @property
    def equal_shares(self) -> bool:
        """Yes, where no minimum of its own stands beside them."""
        return self.minimum == 1

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan:
        """The plan for a budget."""
        sizes = {name: scores.numel() for name, scores in pools.items()}
        if budget.target == "density" and not cost.nodes:
            asked = {name: count_of(budget.value, size) for name, size in sizes.items()}
            kept = {name: _split(pools[name], asked[name], self.minimum) for name in pools}
            risen = tuple(name for name in pools if int(kept[name].sum()) > asked[name])
            notes = bound_notes(risen, self.minimum)
            return plan_of(kept, cost, budget, notes, asked=sum(asked.values()))
        step = cost.multiple_of if cost.nodes else 1
        plan_at, low, high = proportional_growth(pools, sizes, self.minimum, step)
        kept = plan_at(largest(plan_at, low, high, cost, budget))
        free = proportional_growth(pools, sizes, 0, step)
        notes = bound_notes(short_of(kept, free, pools, self.minimum), self.minimum)
        return plan_of(kept, cost, budget, notes)


@dataclass(frozen=True)
class Global(Allocation):
    """The best units of all pools together are kept; layers compete with each other.

    For a density of single weights floor(density · total + 1/2) units are kept; otherwise the
    largest number whose exact cost is within the budget.

    Attributes:
        minimum: units that every pool keeps at least, met inside the total; 0 lets layers
            collapse.
        per: rank by the score over what the unit costs at the present plan: its "macs",
            "parameters" or, for nodes, "latency"; None ranks by the score alone.
    """

    minimum: int = 1
    per: str | None = field(default=None, metadata={LATER: True})
    __repr__ = shown

    def __post_init__(self) -> None:
        whole("minimum", self.minimum, low=0)
        checked_cost(self.per)

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan:
        """The plan for a budget.

        Raises:
            ValueError: ranked by cost, a negative score, or a cost that is not known.
        """
        if self.per is not None and not cost.nodes:
            pools = priced_scores(pools, cost, self.per)
        if self.per is not None and cost.nodes:
            plan_at, low, high = priced_growth(pools, self.minimum, cost, self.per)
        else:
            plan_at, low, high = ranked_growth(pools, self.minimum)
        asked = None
        if budget.target == "density" and not cost.nodes:
            asked = count_of(budget.value, high)
            kept = plan_at(max(asked, low))
        else:
            step = cost.multiple_of if cost.nodes else 1
            if step > 1:
                plan_at = _rounded(plan_at, pools, step, self.minimum)
            kept = plan_at(largest(plan_at, low, high, cost, budget))
        short = short_of(kept, ranked_growth(pools, 0), pools, self.minimum)
        return plan_of(kept, cost, budget, bound_notes(short, self.minimum), asked=asked)


def _split(scores: Tensor, total: int, minimum: int) -> Tensor:
    """A layer's units shared among its pools."""
    n_pools, n_units = scores.shape
    return torch.tensor(share(total, [n_units] * n_pools, minimum=minimum))


def _rounded(
    plan_at: Callable[[int], dict[str, Tensor]], pools: Pools, step: int, minimum: int
) -> Callable[[int], dict[str, Tensor]]:
    """The plans with every count rounded down to a multiple of `step` that holds the minimum."""

    def rounded(k: int) -> dict[str, Tensor]:
        plan = {}
        for name, counts in plan_at(k).items():
            size = pools[name].shape[1]
            low = min(size, -(-minimum // step) * step)
            down = torch.clamp(counts // step * step, min=low)
            plan[name] = torch.where(counts == size, counts, down)
        return plan

    return rounded
