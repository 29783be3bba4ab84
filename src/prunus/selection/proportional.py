"""Random sets whose units are as likely to be kept as their scores are large."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from prunus.check import fraction
from prunus.inclusion import inclusion
from prunus.layer import Layer
from prunus.nodes import ClassView
from prunus.selection.choice import Choice, Selection, checked_counts

__all__ = ["Proportional", "systematic_sample"]


def systematic_sample(
    probabilities: Float[Tensor, " units"], kept: int, *, generator: Generator
) -> Int[Tensor, " kept"]:
    """`kept` units in ascending order; unit i with probability π_i exactly, up to rounding.

    The units are laid out in random order as intervals of length π_i, and those are taken that
    hold a point of u, u + 1, u + 2, …

    Args:
        probabilities: π, which sum to `kept`.
        kept: size of the sample.
        generator: of the order and of u.

    References:
        Madow (1949), On the theory of systematic sampling II; Hartley and Rao (1962), Sampling
        with unequal probabilities and without replacement (the random order).
    """
    certain = torch.nonzero(probabilities >= 1.0).flatten()
    unsure = torch.nonzero((probabilities > 0) & (probabilities < 1.0)).flatten()
    rest = kept - len(certain)
    if rest <= 0 or len(unsure) == 0:
        return certain[:kept]
    order = unsure[torch.randperm(len(unsure), generator=generator)]
    ends = probabilities[order].cumsum(0)
    ends = ends * (rest / float(ends[-1]))
    points = torch.rand((), dtype=torch.float64, generator=generator) + torch.arange(rest)
    at = torch.searchsorted(ends, points, right=True).clamp(max=len(order) - 1)
    at = torch.unique(at)
    if len(at) < rest:  # an interval of length 1 but for rounding held two points
        free = torch.ones(len(order), dtype=torch.bool)
        free[at] = False
        likeliest = (probabilities[order] * free).argsort(descending=True, stable=True)
        at = torch.cat([at, likeliest[: rest - len(at)]])
    return torch.cat([certain, order[at]]).sort().values


@dataclass(frozen=True)
class Proportional(Selection):
    """Fixed-size random sets, inclusion probability proportional to the score.

    Attributes:
        smallest: inclusion probability of the least unit, where the count allows it; kept weights
            are scaled by up to its inverse.
        rescaled: scale kept weights by 1 / probability, so that the layer is unbiased over draws.
    """

    smallest: float = 0.05
    rescaled: bool = True
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction("smallest", self.smallest, one=True)

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: Layer | ClassView,
        generator: Generator,
    ) -> Choice:
        """The mask of one draw in each pool, and the factors 1 / probability.

        Raises:
            ValueError: a count leaves its pool, or a score is negative.
        """
        del layer
        checked_counts(scores, kept)
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        scale = torch.ones(scores.shape, dtype=torch.float64)
        for pool, k in enumerate(kept.tolist()):
            odds = inclusion(scores[pool], k, smallest=self.smallest)
            mask[pool, systematic_sample(odds, k, generator=generator)] = True
            scale[pool] = torch.where(odds > 0, 1 / odds.clamp(min=1e-300), 1.0)
        if not self.rescaled:
            return Choice(mask=mask.to(scores.device))
        return Choice(mask=mask.to(scores.device), scale=scale.to(scores))
