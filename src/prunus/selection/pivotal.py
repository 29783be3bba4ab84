"""Samples of a fixed size with given probabilities, sums over which concentrate."""

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

__all__ = ["pivotal_sample"]


def pivotal_sample(
    probabilities: Float[Tensor, " units"], kept: int, *, generator: Generator
) -> Int[Tensor, " kept"]:
    """`kept` units in ascending order; unit i with probability π_i exactly, up to rounding.

    Units meet in pairs, in random order: of two that together have less than 1 the winner takes
    both probabilities and the loser goes; of two with more, the winner is kept and the loser goes
    on with the rest. Expectations stay, and half of the units are decided in every round. For
    coefficients of one sign E exp(Σ c_i I_i) ≤ Π E exp(c_i I_i), so that sums over the sample
    concentrate as those over independent draws do (proof: docs/sampling_methods.md).

    Args:
        probabilities: π, which sum to `kept`.
        kept: size of the sample.
        generator: of the order and of every meeting.

    References:
        Deville and Tillé (1998), Unequal probability sampling without replacement through a
        splitting method; Srinivasan (2001), Distributions on level-sets, for pairs in a tree.
    """
    p = probabilities.to(torch.float64).clamp(0.0, 1.0)
    unsure = torch.nonzero((p > 0) & (p < 1)).flatten()
    unsure = unsure[torch.randperm(len(unsure), generator=generator)]
    while len(unsure) > 1:
        pairs = len(unsure) // 2
        one, other = unsure[:pairs], unsure[pairs : 2 * pairs]
        a, b = p[one], p[other]
        total = a + b
        few = total < 1
        chance = torch.where(few, a / total, (1 - b) / (2 - total).clamp(min=1e-300))
        wins = torch.rand(pairs, dtype=torch.float64, generator=generator) < chance
        winner = torch.where(wins, one, other)
        loser = torch.where(wins, other, one)
        p[winner] = torch.where(few, total, 1.0)
        p[loser] = torch.where(few, 0.0, total - 1)
        left = torch.where(few, winner, loser)
        unsure = torch.cat([left, unsure[2 * pairs :]])
        unsure = unsure[(p[unsure] > 0) & (p[unsure] < 1)]
    found = torch.nonzero(p > 0.5).flatten()  # the last one is 0 or 1 but for rounding
    assert len(found) == kept
    return found
