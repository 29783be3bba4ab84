"""Keep units drawn uniformly at random, exactly as many as asked for."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from prunus.nodes import UnitView
from prunus.parts import UNITS
from prunus.selection.choice import Choice, Selection
from prunus.selection.top_k import top_k_mask

__all__ = ["RandomK"]


@dataclass(frozen=True)
class RandomK(Selection):
    """Every subset of the asked size is equally likely; scores are not read.

    Attributes:
        rescaled: scale kept weights by units / kept, so that the layer is unbiased over draws.
    """

    rescaled: bool = False
    random: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = UNITS

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: UnitView,
        generator: Generator,
    ) -> Choice:
        """The mask of a uniform draw in each pool."""
        del layer
        # Units that an earlier step removed (score −∞) come last.
        keys = torch.rand(scores.shape, dtype=torch.float64, generator=generator)
        keys = keys.masked_fill((scores == -torch.inf).cpu(), -1.0)
        mask = top_k_mask(keys, kept.cpu()).to(scores.device)
        if not self.rescaled:
            return Choice(mask=mask)
        factor = scores.shape[1] / kept.clamp(min=1).to(scores.device, scores.dtype)
        return Choice(mask=mask, scale=factor[:, None].expand(scores.shape).contiguous())
