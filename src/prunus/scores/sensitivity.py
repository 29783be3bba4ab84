"""Sensitivity: how much the network's outputs move when a weight goes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.protocol import Score

__all__ = ["Sensitivity", "sensitivity_scores"]


def sensitivity_scores(weight: Tensor, sensitivity: Tensor) -> Tensor:
    """|W| √S: the root mean square change of the output if this weight alone goes."""
    return weight.abs().to(torch.float64) * (sensitivity + _floor(sensitivity)).sqrt()


def _floor(sensitivity: Tensor) -> float:
    """s₀ = 10⁻³ mean S: no weight is called free for want of samples."""
    return 1e-3 * float(sensitivity.mean())


@dataclass(frozen=True)
class Sensitivity(Score):
    """|w| √S, S = E Σ_o (∂F_o/∂w)²: to first order, the rms gap if this weight alone goes.

    Needs inputs and no labels. Scores of different layers are in one unit, that of the output.
    S + 10⁻³ mean S stands for S, so that no weight is called free for want of samples. For
    nodes, the root of the sum of squares over the consumers' weights of a class.

    References:
        docs/gap.md, "A mask from gradients".
    """

    side: ClassVar[str] = "consumer"
    reduction: ClassVar[str] = "l2"
    statistics: ClassVar[tuple[str, ...]] = ("sensitivity",)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Scores in units of the output, float64."""
        layer.require("sensitivity")
        assert layer.sensitivity is not None  # just required
        return sensitivity_scores(layer.weight, layer.sensitivity)
