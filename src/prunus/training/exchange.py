"""Weights that leave and weights that come in, as many of each pool."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["exchange"]


def exchange(
    size: Float[Tensor, "pools units"],
    kept: Bool[Tensor, "pools units"],
    growth: Float[Tensor, "pools units"],
    part: float,
) -> Bool[Tensor, "pools units"]:
    """Each pool drops floor(part · kept) of its smallest units and takes in as many removed ones.

    Those that come in have the largest `growth` among all that are not there, the dropped ones
    included. Ties: the lower index stays, and comes in.

    Args:
        size: of the units.
        kept: True where a unit is there.
        growth: larger comes in first.
        part: share of the kept units that is exchanged.
    """
    counts = kept.sum(1)
    moved = torch.tensor([math.floor(part * int(k)) for k in counts], device=kept.device)
    staying = _best(size.masked_fill(~kept, -torch.inf), counts - moved)
    return staying | _best(growth.masked_fill(staying, -torch.inf), moved)


def _best(values: Float[Tensor, "pools units"], counts: Tensor) -> Bool[Tensor, "pools units"]:
    """True for so many of the largest values of each pool; ties to the lower index."""
    found = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    for pool, count in enumerate(counts.tolist()):
        if count == 0:
            continue
        row = values[pool]
        # The count-th largest, without a sort: layers have millions of weights.
        edge = row.kthvalue(len(row) - count + 1).values
        above = row > edge
        at = (row == edge).nonzero().flatten()
        found[pool] = above
        found[pool, at[: count - int(above.sum())]] = True
    return found
