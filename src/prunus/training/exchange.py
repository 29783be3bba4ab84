"""Weights that leave and weights that come in, as many of each pool."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.ranking import counted, kth_largest, places

__all__ = ["exchange"]


def exchange(
    size: Float[Tensor, "pools units"],
    growth: Float[Tensor, "pools units"],
    part: float,
) -> Bool[Tensor, "pools units"]:
    """Each pool drops floor(part · kept) of its smallest units and takes in as many removed ones.

    Those that come in have the largest `growth` among all that are not there, the dropped ones
    included. Ties: the lower index stays, and comes in.

    Args:
        size: of the units that are there; −∞ for the others.
        growth: larger comes in first.
        part: share of the kept units that is exchanged.
    """
    kept = size != -math.inf  # NaN is there too
    counts = counted(kept).tolist()
    moved = torch.tensor([math.floor(part * k) for k in counts], dtype=torch.int64)
    staying = _best(size, kept, torch.tensor(counts, dtype=torch.int64) - moved)
    if not bool(moved.any()):
        return staying
    away = torch.logical_not(staying)
    return staying.logical_or_(_best(torch.where(away, growth, -math.inf), away, moved))


def _best(
    values: Float[Tensor, "pools units"], among: Bool[Tensor, "pools units"], counts: Tensor
) -> Bool[Tensor, "pools units"]:
    """True for so many of the largest values of each pool among some; ties to the lower index.

    Args:
        values: −∞ for all that are not among them.
        among: True for those that are.
        counts: at most as many of each pool as are among them.
    """
    found = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    for row, there, best, count in zip(values, among, found, counts.tolist(), strict=True):
        if count == 0:
            continue
        edge = kth_largest(row, count)  # without a sort: layers have millions of weights
        torch.ge(row, edge, out=best).logical_and_(there)
        surplus = int(best.count_nonzero()) - count
        if surplus > 0:
            best[places((row == edge).logical_and_(there))[-surplus:]] = False
    return found
