"""Random sets whose units are as likely to be kept as their scores are large."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from prunus.check import fraction, unknown
from prunus.inclusion import inclusion
from prunus.layer import Layer
from prunus.nodes import ClassView
from prunus.parts import LATER, Composition, shown
from prunus.selection.choice import Choice, Selection, checked_counts
from prunus.selection.pivotal import pivotal_sample

__all__ = ["Proportional", "by_strata", "systematic_sample"]


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


DESIGNS = {"systematic": systematic_sample, "pivotal": pivotal_sample}


def by_strata(
    scores: Float[Tensor, " units"],
    kept: int,
    stratum: Bool[Tensor, " units"],
    *,
    smallest: float,
) -> tuple[Float[Tensor, " units"], int]:
    """Probabilities that sum to a whole number in `stratum` and to the rest of `kept` outside.

    The stratum's number is what `inclusion` expects over both together, rounded; a side that has
    scores above 0 keeps one at least, where two are kept in all.

    Returns:
        the probabilities, and the number that is kept in `stratum`.
    """
    live = scores != -torch.inf
    sizes = int((live & stratum).sum()), int((live & ~stratum).sum())
    if kept >= sum(sizes):  # all of them: nothing is drawn
        odds = inclusion(scores, kept, smallest=smallest)
        return odds, int(odds[stratum].sum())
    together = inclusion(scores, kept, smallest=smallest)
    own = int(float(together[stratum].sum()) + 0.5)
    if kept >= 2:
        lows = [int(bool((scores[side] > 0).any())) for side in (stratum, ~stratum)]
        own = min(max(own, lows[0]), kept - lows[1])
    own = min(max(own, kept - sizes[1]), sizes[0])
    odds = torch.zeros_like(together)
    odds[stratum] = inclusion(scores[stratum], own, smallest=smallest)
    odds[~stratum] = inclusion(scores[~stratum], kept - own, smallest=smallest)
    return odds, own


@dataclass(frozen=True)
class Proportional(Selection):
    """Fixed-size random sets, inclusion probability proportional to the score.

    Attributes:
        smallest: inclusion probability of the least unit, where the count allows it; kept weights
            are scaled by up to its inverse. 0 sets no floor: units with score 0 are then never
            kept while others are left.
        rescaled: scale kept weights by 1 / probability, so that the layer is unbiased over draws.
        by_sign: draw the positive and the negative weights of a pool apart, each side as many as
            would be expected: their sums, which cancel, then vary less. For edges of a row or a
            layer.
        design: "systematic" takes evenly spaced points of the units in random order; "pivotal"
            lets units meet in pairs (`pivotal_sample`), which bounds sums over the draw as those
            over independent draws, so that certificates have bounds for them.

    References:
        Horvitz and Thompson (1952), for the scale; Baykal et al. (2022), SiPPing neural networks,
        section 4, for the strata by sign.
    """

    smallest: float = 0.05
    rescaled: bool = True
    by_sign: bool = field(default=False, metadata={LATER: True})
    design: Literal["systematic", "pivotal"] = field(default="systematic", metadata={LATER: True})
    random: ClassVar[bool] = True
    __repr__ = shown

    def __post_init__(self) -> None:
        fraction("smallest", self.smallest, zero=True, one=True)
        if not isinstance(self.by_sign, bool):
            raise ValueError(f"`by_sign` must be True or False, got {self.by_sign!r}.")
        if self.design not in DESIGNS:
            raise unknown("design of Proportional", str(self.design), DESIGNS)

    @property
    def concentrates(self) -> bool:
        """Where draws are pivotal and kept weights are scaled by 1 / π."""
        return self.rescaled and self.design == "pivotal"

    def beside(self, recipe: Composition) -> str | None:
        """Refuses strata by sign where a unit has no sign."""
        if not self.by_sign or recipe.granularity.pools in ("layer", "row"):
            return None
        return (
            f"{self!r} draws positive and negative weights apart, so `granularity` must be Edge() "
            f"or EdgePerRow(), got {recipe.granularity!r}."
        )

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
        checked_counts(scores, kept)
        sample = DESIGNS[self.design]
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        scale = torch.ones(scores.shape, dtype=torch.float64)
        positive = None
        if self.by_sign and isinstance(layer, Layer):
            positive = (layer.weight >= 0).cpu().reshape(scores.shape)
        for pool, k in enumerate(kept.tolist()):
            own = scores[pool].cpu()
            if positive is None:
                odds = inclusion(own, k, smallest=self.smallest)
                mask[pool, sample(odds, k, generator=generator)] = True
            else:
                side = positive[pool]
                odds, first = by_strata(own, k, side, smallest=self.smallest)
                for part, count in ((side, first), (~side, k - first)):
                    units = part.nonzero().flatten()
                    drawn = sample(odds[units], count, generator=generator)
                    mask[pool, units[drawn]] = True
            scale[pool] = torch.where(odds > 0, 1 / odds.clamp(min=1e-300), 1.0)
        if not self.rescaled:
            return Choice(mask=mask.to(scores.device))
        return Choice(mask=mask.to(scores.device), scale=scale.to(scores))
