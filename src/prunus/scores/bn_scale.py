"""The scale that a norm gives to a channel."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.scores.protocol import Score

__all__ = ["BNScale"]


@dataclass(frozen=True)
class BNScale(Score):
    """|γ| of the norms on a class's channels; several norms, and several members, add up.

    The paper trains with an L1 penalty on γ and then prunes all layers by one threshold; without
    that penalty scales of different layers are not comparable, so the preset prunes each group
    alike.

    References:
        Liu et al. (2017), Learning efficient convolutional networks through network slimming.
    """

    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ()

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Sums of |γ|, float64.

        Raises:
            ValueError: no norm with a scale acts on the group's channels.
        """
        if not view.scales:
            raise ValueError(
                f"No norm with a scale acts on the channels of {view.name!r}, so BNScale() cannot "
                f"rank them. Exclude the layer, or use Magnitude(side='producer')."
            )
        parts = [scale.to("cpu", torch.float64).abs().sum(1) for scale in view.scales.values()]
        return torch.stack(parts).sum(0)
