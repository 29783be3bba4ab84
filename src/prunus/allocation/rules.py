"""The allocations: uniform over layers, and global over all units."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunus.allocation.growth import (
    CostOf,
    Growth,
    Kept,
    Pools,
    fits,
    largest,
    ranked_growth,
    spent_of,
)
from prunus.budget import Budget, Plan, count_of, share
from prunus.check import whole

__all__ = ["ALLOCATIONS", "Allocation", "Global", "Uniform", "plan_of"]


class Allocation(Protocol):
    """The call of every allocation; the plan's cost is within the budget where that can be."""

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan: ...


def plan_of(kept: Kept, cost: CostOf, budget: Budget, notes: tuple[str, ...] = ()) -> Plan:
    """A plan with its density and what it reaches of the budget."""
    price = cost(kept)
    value = spent_of(price, budget)
    # A density of single weights is met by rounding, so it may lie half a unit above.
    met = (budget.target == "density" and not cost.nodes) or fits(price, budget)
    if not met:
        notes = (*notes, f"the minimum of every pool alone exceeds the budget of {budget.target}")
    counts: dict[str, int | tuple[int, ...]] = {
        name: int(k[0]) if len(k) == 1 else tuple(int(v) for v in k) for name, k in kept.items()
    }
    return Plan(
        kept=counts,
        density=price.density,
        limit=budget.value,
        kind=budget.target,
        value=math.nan if value is None else float(value),
        feasible=met,
        notes=notes,
    )


@dataclass(frozen=True)
class Uniform:
    """Every layer keeps the same share of its units.

    For a density of single weights each layer keeps floor(density · total + 1/2), its pools
    sharing by largest remainder. For nodes, and for every other budget, it is the largest plan of
    equal shares whose exact cost is within the budget.

    Attributes:
        minimum: units that every pool keeps at least; 0 lets layers collapse.
    """

    minimum: int = 1

    def __post_init__(self) -> None:
        whole("minimum", self.minimum, low=0)

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan:
        """The plan for a budget."""
        notes: tuple[str, ...] = ()
        if budget.target == "density" and not cost.nodes:
            kept = {name: self._share(scores, budget.value) for name, scores in pools.items()}
            for name, counts in kept.items():
                asked = count_of(budget.value, pools[name].numel())
                if int(counts.sum()) > asked:
                    notes += (f"{name}: the minimum of {self.minimum} per pool binds",)
            return plan_of(kept, cost, budget, notes)
        plan_at, low, high = self._growth(pools, cost.multiple_of if cost.nodes else 1)
        return plan_of(plan_at(largest(plan_at, low, high, cost, budget)), cost, budget, notes)

    def _share(self, scores: Tensor, density: float) -> Tensor:
        n_pools, n_units = scores.shape
        total = count_of(density, n_pools * n_units)
        return torch.tensor(share(total, [n_units] * n_pools, minimum=self.minimum))

    def _growth(self, pools: Pools, step: int) -> Growth:
        """Units join in the order of the share of their layer that they complete."""
        names = list(pools)
        sizes = [pools[name].numel() for name in names]
        marks, owners, amounts, start = [], [], [], []
        for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
            n_pools = pools[name].shape[0]
            first = min(size, -(-self.minimum * n_pools // step) * step)
            start.append(first)
            ends = torch.arange(first + step, size + step, step).clamp(max=size)
            begins = torch.cat([torch.tensor([first]), ends[:-1]])[: len(ends)]
            marks.append(((begins + ends) / 2).to(torch.float64) / size)
            amounts.append(ends - begins)
            owners.append(torch.full((len(ends),), i))
        order = torch.cat(marks).argsort(stable=True)
        owner, amount = torch.cat(owners)[order], torch.cat(amounts)[order]

        def plan_at(k: int) -> dict[str, Tensor]:
            added = torch.bincount(
                owner[:k], weights=amount[:k].to(torch.float64), minlength=len(names)
            ).to(torch.int64)
            return {
                name: torch.tensor(
                    share(start[i] + int(added[i]), [pools[name].shape[1]] * pools[name].shape[0])
                )
                for i, name in enumerate(names)
            }

        return plan_at, 0, len(order)


@dataclass(frozen=True)
class Global:
    """The best units of all pools together are kept; layers compete with each other.

    For a density of single weights floor(density · total + 1/2) units are kept; otherwise the
    largest number whose exact cost is within the budget.

    Attributes:
        minimum: units that every pool keeps at least, met inside the total; 0 lets layers
            collapse.
    """

    minimum: int = 1

    def __post_init__(self) -> None:
        whole("minimum", self.minimum, low=0)

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan:
        """The plan for a budget."""
        plan_at, low, high = ranked_growth(pools, self.minimum)
        if budget.target == "density" and not cost.nodes:
            asked = count_of(budget.value, high)
            kept = plan_at(max(asked, low))
            notes: tuple[str, ...] = ()
            free = ranked_growth(pools, 0)[0](asked) if self.minimum else kept
            if any(not torch.equal(free[name], kept[name]) for name in kept):
                notes = (f"the minimum of {self.minimum} per pool binds",)
            return plan_of(kept, cost, budget, notes)
        if cost.nodes and cost.multiple_of > 1:
            plan_at = _rounded(plan_at, pools, cost.multiple_of)
        return plan_of(plan_at(largest(plan_at, low, high, cost, budget)), cost, budget)


def _rounded(
    plan_at: Callable[[int], dict[str, Tensor]], pools: Pools, step: int
) -> Callable[[int], dict[str, Tensor]]:
    """The plans with every count rounded down to a multiple of `step` (at least one step)."""

    def rounded(k: int) -> dict[str, Tensor]:
        plan = {}
        for name, counts in plan_at(k).items():
            size = pools[name].shape[1]
            low = torch.clamp(counts // step * step, min=min(step, size))
            plan[name] = torch.where(counts == size, counts, low)
        return plan

    return rounded


ALLOCATIONS = {"Uniform": Uniform, "Global": Global}
