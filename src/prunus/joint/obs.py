"""Optimal brain surgeon as a method: the best trace mask with the update that belongs to it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from prunus.check import positive
from prunus.compensation.least_squares import least_squares
from prunus.elimination import global_counts, layer_traces
from prunus.granularity import Granularity
from prunus.joint.protocol import Joint, JointResult
from prunus.layer import Layer

__all__ = ["OBS"]


@dataclass(frozen=True)
class OBS(Joint):
    """Row-wise backward elimination; of all rules here the smallest layer error for a density.

    With one pool per output the counts are given; with one pool per layer the rows share them by
    the prices of their traces. The weights are the multi-weight OBS update for the final mask,
    which is least squares with the same damping.

    Attributes:
        ridge: λ relative to the mean of the Gram's diagonal.

    References:
        Hassibi and Stork (1993); Frantar and Alistarh (2022), Optimal brain compression.
    """

    ridge: float = 1e-4
    statistics: ClassVar[tuple[str, ...]] = ("gram",)
    pools: ClassVar[tuple[str, ...]] = ("layer", "row")

    def __post_init__(self) -> None:
        positive("ridge", self.ridge)

    def __call__(
        self, layer: Layer, granularity: Granularity, kept: Int[Tensor, " pools"]
    ) -> JointResult:
        """Mask and weights with exactly the counts asked for.

        Raises:
            ValueError: the layer has no Gram matrix, or the units are neither edges of a row nor
                of a layer.
        """
        layer.require("gram")
        parts = layer.blocks()
        counts = kept.cpu()
        if granularity.pools == "row":
            least = [int(part.min()) for part in counts.chunk(len(parts))]
        elif granularity.pools == "layer":
            least = [0] * len(parts)
        else:
            raise ValueError(
                f"OBS eliminates edges of rows, got {granularity!r}. Use EdgePerRow(), Edge(), or "
                f"OBC for N:M."
            )
        traces = layer_traces(layer, ridge=self.ridge, least=least)
        if granularity.pools == "layer":
            shared = global_counts(
                {index: trace.loss for index, trace in enumerate(traces)}, int(counts.sum())
            )
            shares = tuple(shared[index] for index in range(len(parts)))
        else:
            shares = counts.chunk(len(parts))
        masks, weights, ridges = [], [], []
        for part, trace, own in zip(parts, traces, shares, strict=True):
            assert part.gram is not None
            mask = trace.mask(own).to(part.weight.device)
            fit = least_squares(
                part.weight, part.gram.to(part.weight.device), mask, ridge=self.ridge
            )
            masks.append(mask)
            weights.append(fit.weight)
            ridges.append(float(fit.ridge.max()))
        return JointResult(mask=torch.cat(masks), weight=torch.cat(weights), ridge=max(ridges))
