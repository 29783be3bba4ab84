"""The score of methods that choose at random: all weights alike."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.nodes import BlockView, ExpertView
from prunus.parts import UNITS
from prunus.scores.protocol import Score

__all__ = ["Constant"]


@dataclass(frozen=True)
class Constant(Score):
    """The same score for every weight, block or expert."""

    statistics: ClassVar[tuple[str, ...]] = ()
    serves: ClassVar[tuple[str, ...]] = UNITS

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Ones, in the shape of the weight."""
        return torch.ones_like(layer.weight)

    def blocks(self, view: BlockView) -> Float[Tensor, " blocks"]:
        """Ones."""
        return torch.ones(len(view.blocks), dtype=torch.float64)

    def experts(self, view: ExpertView) -> Float[Tensor, " experts"]:
        """Ones."""
        return torch.ones(view.count, dtype=torch.float64)
