"""Layers as dense as Erdős–Rényi graphs: wide layers keep a smaller share of their weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from prunus.allocation.growth import CostOf, Pools, largest, proportional_growth, short_of
from prunus.allocation.rules import Allocation, bound_notes, plan_of
from prunus.budget import Budget, Plan, count_of, share
from prunus.check import whole
from prunus.parts import EDGES

__all__ = ["ERK"]


@dataclass(frozen=True)
class ERK(Allocation):
    """Erdős–Rényi-kernel: a layer keeps weights in proportion to the sum of its weight's axes.

    A weight of shape (out, in, k₁, …) has density ε (out + in + k₁ + …) / (out · in · k₁ · …), so
    it keeps ε (out + in + k₁ + …) weights; a layer that this would overfill stays dense and leaves
    its surplus to the others. For a density, floor(density · total + 1/2) weights are shared among
    the layers by largest remainder; for other budgets it is the largest plan of one ε whose exact
    cost is within the budget.

    Attributes:
        minimum: units that every pool keeps at least, met inside the total; 0 lets layers
            collapse.

    References:
        Mocanu et al. (2018), Scalable training of artificial neural networks with adaptive sparse
        connectivity, for linear layers; Evci et al. (2020), Rigging the lottery, section 3, with
        the kernel.
    """

    minimum: int = 1
    serves: ClassVar[tuple[str, ...]] = (EDGES,)
    reads_scores: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("minimum", self.minimum, low=0)

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan:
        """The plan for a budget.

        Raises:
            ValueError: the units are nodes, for which no Erdős–Rényi density is defined.
        """
        if cost.nodes:
            raise ValueError(
                "ERK() shares single weights among layers, got nodes. Use Uniform() or Global()."
            )
        rates = {name: sum(cost.shapes[name]) for name in pools}
        free = proportional_growth(pools, rates, 0)
        asked = None
        if budget.target == "density":
            sizes = [scores.numel() for scores in pools.values()]
            lows = [
                min(self.minimum, scores.shape[1]) * scores.shape[0] for scores in pools.values()
            ]
            asked = count_of(budget.value, sum(sizes))
            totals = share(asked, sizes, rates=list(rates.values()), minimum=lows)
            kept = {
                name: torch.tensor(share(total, [scores.shape[1]] * scores.shape[0]))
                for total, (name, scores) in zip(totals, pools.items(), strict=True)
            }
        else:
            plan_at, low, high = proportional_growth(pools, rates, self.minimum)
            kept = plan_at(largest(plan_at, low, high, cost, budget))
        short = short_of(kept, free, pools, self.minimum)
        return plan_of(kept, cost, budget, bound_notes(short, self.minimum), asked=asked)
