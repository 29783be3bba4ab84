"""Weights that are zero before anything is pruned, by pools."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.granularity import Granularity, pooled
from prunus.layer import Layer
from prunus.ranking import counted, places

__all__ = ["filled_in", "zeros_last"]


def zeros_last(
    granularity: Granularity, layer: Layer, scores: Float[Tensor, "out in"]
) -> Float[Tensor, "pools units"]:
    """The scores as pools, −∞ where the weight is zero but in pools of zeros alone."""
    own, count = pooled(granularity, layer, scores), _idle(layer)
    if count == 0:  # as nearly always
        return own
    if count < own.shape[1]:  # no pool can be of zeros alone
        lowered = scores.clone(memory_format=torch.contiguous_format)
        lowered.view(-1)[places((layer.weight == 0).flatten()).to(scores.device)] = -torch.inf
        return pooled(granularity, layer, lowered)
    zeros = _zeros(granularity, layer).to(scores.device)
    return own.masked_fill(zeros & (counted(zeros) < zeros.shape[1])[:, None], -torch.inf)


def filled_in(granularity: Granularity, layer: Layer) -> Int[Tensor, " pools"]:
    """How many units of each pool have a weight that is not zero."""
    blank = torch.zeros(()).expand(layer.weight.shape)
    pools, units = pooled(granularity, layer, blank).shape
    count = _idle(layer)
    if count == 0 or pools == 1:
        return torch.full((pools,), units - count)
    return units - counted(_zeros(granularity, layer)).cpu()


def _idle(layer: Layer) -> int:
    return layer.weight.numel() - int(layer.weight.count_nonzero())


def _zeros(granularity: Granularity, layer: Layer) -> Bool[Tensor, "pools units"]:
    return pooled(granularity, layer, (layer.weight != 0).float()) <= 0
