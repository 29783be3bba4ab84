"""Keep the best units of each pool."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from prunus.check import any_nan
from prunus.nodes import UnitView
from prunus.parts import UNITS
from prunus.ranking import FEW, counted, kth_largest, places
from prunus.selection.choice import Choice, Selection, checked_counts

__all__ = ["TopK", "top_k_mask"]

AT_A_TIME = 2**20  # units whose pools are ranked together


def top_k_mask(
    scores: Float[Tensor, "pools units"], kept: Int[Tensor, " pools"]
) -> Bool[Tensor, "pools units"]:
    """Keep the `kept[p]` highest scores of each pool p; ties go to the lower index.

    The places that the units above the worst kept score leave go to the units that equal it, so
    equal scores cannot change the count. NaN ranks as +inf.
    Raises ValueError if a count lies outside its pool.
    """
    checked_counts(scores, kept)
    if not scores.numel():
        return scores.bool()
    if len(scores) > 1 and scores.numel() > AT_A_TIME:  # several times the scores' memory else
        rows = max(1, AT_A_TIME // scores.shape[1])
        pieces = zip(torch.split(scores, rows), torch.split(kept, rows), strict=True)
        return torch.cat([top_k_mask(part, count) for part, count in pieces])
    kept = kept.to(scores.device)
    if any_nan(scores):
        scores = scores.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    worst = _worst_kept(scores, kept)
    mask = scores >= worst
    surplus = counted(mask).to(kept) - kept
    if bool(surplus.any()):  # else nothing is equal
        _drop_last(mask, scores == worst, surplus)
    return mask


def _drop_last(
    mask: Bool[Tensor, "pools units"],
    level: Bool[Tensor, "pools units"],
    surplus: Int[Tensor, " pools"],
) -> None:
    """Take the last `surplus[p]` of the `level` units of each pool p out of the mask."""
    if len(mask) > FEW:
        missing = counted(level) - surplus
        mask ^= level & (level.cumsum(1) > missing[:, None])
        return
    for row, same, count in zip(mask, level, surplus.tolist(), strict=True):
        if count:
            row[places(same)[-count:]] = False


def _worst_kept(
    scores: Float[Tensor, "pools units"], kept: Int[Tensor, " pools"]
) -> Float[Tensor, "pools 1"]:
    """The `kept[p]`-th largest score of each pool; the largest where none is kept."""
    counts = kept.clamp_min(1)
    if len(scores) <= FEW:
        rows = zip(scores, counts.tolist(), strict=True)
        return torch.stack([kth_largest(row, count) for row, count in rows])[:, None]
    if bool((counts == counts[0]).all()):  # selection is cheaper than sorting
        rank = scores.shape[1] + 1 - int(counts[0])
        return scores.kthvalue(rank, dim=1, keepdim=True).values
    return scores.sort(dim=1, descending=True).values.gather(1, counts[:, None] - 1)


@dataclass(frozen=True)
class TopK(Selection):
    """Deterministic selection of the best units."""

    random: ClassVar[bool] = False
    serves: ClassVar[tuple[str, ...]] = UNITS

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: UnitView,
        generator: Generator,
    ) -> Choice:
        """The mask of the best units of each pool."""
        del layer, generator  # needs neither; every rule is called alike
        return Choice(mask=top_k_mask(scores, kept))
