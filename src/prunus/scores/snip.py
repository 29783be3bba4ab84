"""SNIP: how much the loss would change with each weight's connection."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.protocol import Score

__all__ = ["SNIP", "snip", "snip_normalised"]


def snip(weight: Float[Tensor, "out in"], grad: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Connection sensitivity |w · E[∂L/∂w]|; the sign is kept while batches are averaged.

    Args:
        weight: w at initialisation.
        grad: E[∂L/∂w] over samples (or their sum: a common factor changes no rank).

    Returns:
        sensitivities with the dtype of `grad`.

    References:
        Lee et al. (2019), SNIP: single-shot network pruning based on connection sensitivity,
        Eq. 6, before its normalisation, which is the same for all weights.
    """
    return (weight.to(grad.dtype) * grad).abs()


def snip_normalised(
    weights: Mapping[str, Tensor], grads: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Sensitivities of all layers over their sum, so that they sum to 1 (Lee et al., Eq. 6).

    Raises:
        ValueError: all sensitivities are zero, as on a loss without gradient.
    """
    scores = {name: snip(weights[name], grads[name]) for name in weights}
    total = torch.stack([s.sum() for s in scores.values()]).sum()
    if not float(total) > 0:
        raise ValueError(
            "All connection sensitivities are zero: the loss has no gradient at these weights. "
            "Check the loss and the first weights."
        )
    return {name: s / total for name, s in scores.items()}


@dataclass(frozen=True)
class SNIP(Score):
    """|w · E[∂L/∂w]|; for nodes, summed over a class's weights."""

    side: ClassVar[str] = "both"
    reduction: ClassVar[str] = "sum"
    statistics: ClassVar[tuple[str, ...]] = ("grad",)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Sensitivities, float64."""
        layer.require("grad")
        assert layer.grad is not None  # just required
        return snip(layer.weight, layer.grad)
