"""Shares of the layers under sampling with probabilities proportional to the scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from prunus.allocation.growth import CostOf, Pools, largest
from prunus.allocation.rules import Allocation, bound_notes, plan_of
from prunus.budget import Budget, Plan, count_of, share
from prunus.check import fraction, positive, whole
from prunus.inclusion import inclusion
from prunus.parts import EDGES
from prunus.scores.sensitivity import sensitivity_scores

__all__ = ["LeastVariance", "optimal_densities"]

STEPS = 16  # by which the expected number of a budget that is no density grows, per unit


@dataclass(frozen=True)
class LeastVariance(Allocation):
    """Every pool keeps what sampling by one λ for all layers keeps on average.

    Units have probabilities min(1, max(smallest, λ · score)) with one λ, which is least variance
    over all layers together; `Proportional` then draws in each pool the number expected there,
    rounded by largest remainder.

    Attributes:
        smallest: as in `Proportional`.
        minimum: units that every pool keeps at least, met inside the total; 0 lets layers
            collapse.
    """

    smallest: float = 0.05
    minimum: int = 1
    serves: ClassVar[tuple[str, ...]] = (EDGES,)

    def __post_init__(self) -> None:
        fraction("smallest", self.smallest, one=True)
        whole("minimum", self.minimum, low=0)

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan:
        """The plan for a budget.

        Raises:
            ValueError: the units are nodes, or a score is negative.
        """
        if cost.nodes:
            raise ValueError(
                "LeastVariance() shares single weights among layers, got nodes. Use Uniform() or "
                "Global()."
            )
        flat = torch.cat([scores.detach().double().cpu().flatten() for scores in pools.values()])
        sizes = [n for p in pools.values() for n in [p.shape[1]] * p.shape[0]]

        def expected(total: float) -> list[float]:
            odds = inclusion(flat, total, smallest=self.smallest)
            return [float(part.sum()) for part in torch.split(odds, sizes)]

        def counts(total: float, minimum: int) -> list[int]:
            return [
                min(size, max(minimum, int(share_ + 0.5)))
                for share_, size in zip(expected(total), sizes, strict=True)
            ]

        asked = None
        if budget.target == "density":
            asked = count_of(budget.value, len(flat))
            rates = [round(share_ * 2**32) for share_ in expected(asked)]
            found = share(asked, sizes, rates=rates, minimum=self.minimum)
            free = share(asked, sizes, rates=rates)
        else:
            at = largest(
                lambda k: _by_name(pools, counts(k / STEPS, self.minimum)),
                0,
                len(flat) * STEPS,
                cost,
                budget,
            )
            found, free = counts(at / STEPS, self.minimum), counts(at / STEPS, 0)
        low = [min(self.minimum, size) for size in sizes]
        short = _by_name(pools, [int(f < m) for f, m in zip(free, low, strict=True)])
        names = tuple(name for name, flags in short.items() if bool(flags.any()))
        notes = bound_notes(names, self.minimum)
        return plan_of(_by_name(pools, found), cost, budget, notes, asked=asked)


def optimal_densities(
    weights: Mapping[str, Tensor],
    sensitivity: Mapping[str, Tensor],
    density: float,
    *,
    smallest: float = 0.05,
) -> dict[str, Tensor]:
    """Keep probabilities of least predicted variance for a given expected number kept.

    p_ab = min(1, max(p_min, λ |W_ab| √(S_ab + s₀))), λ by bisection; to be used with rescaling by
    1 / p, which keeps the weights unbiased.

    Args:
        weights: of each layer.
        sensitivity: S of each layer.
        density: expected kept / total over all layers together.
        smallest: p_min, which bounds the factor 1 / p; never above `density`.
    """
    kept = fraction("density", density, one=True)
    floor = min(positive("smallest", smallest), kept)
    scores = {name: sensitivity_scores(weights[name], sensitivity[name]) for name in weights}
    flat = torch.cat([score.flatten() for score in scores.values()])
    odds = inclusion(flat, kept * len(flat), smallest=floor)
    parts = torch.split(odds, [score.numel() for score in scores.values()])
    return {
        name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)
    }


def _by_name(pools: Pools, counts: list[int]) -> dict[str, Int[Tensor, " pools"]]:
    parts = torch.split(torch.tensor(counts), [len(scores) for scores in pools.values()])
    return dict(zip(pools, parts, strict=True))
