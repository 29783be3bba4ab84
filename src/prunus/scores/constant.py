"""The score of methods that choose at random: all weights alike."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.protocol import Score

__all__ = ["Constant"]


@dataclass(frozen=True)
class Constant(Score):
    """The same score for every weight."""

    statistics: ClassVar[tuple[str, ...]] = ()

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Ones, in the shape of the weight."""
        return torch.ones_like(layer.weight)
