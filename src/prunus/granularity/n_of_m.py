"""n of every m inputs that stand beside each other."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from prunus.check import unknown, whole
from prunus.granularity.protocol import Granularity
from prunus.layer import Layer
from prunus.parts import LATER, Composition, shown

__all__ = ["NM"]

AXES = ("channels", "columns")  # along which blocks of N:M lie


@dataclass(frozen=True)
class NM(Granularity):
    """Blocks of `m` consecutive inputs of one output, of which `n` are kept.

    Attributes:
        n: units kept of every block.
        m: units of a block.
        axis: of a convolution, what stands beside each other in a block: "channels" (input
            channels at one tap, as sparse matrix units of GPUs want it) or "columns" (of the
            flattened patch, taps of a channel side by side). For other layers the two are one.
    """

    n: int
    m: int
    axis: str = field(default="channels", metadata={LATER: True})
    pools: ClassVar[str] = "block"
    __repr__ = shown

    def __post_init__(self) -> None:
        whole("m", self.m, low=1)
        whole("n", self.n, low=1, high=self.m)
        if self.axis not in AXES:
            raise unknown("axis of N:M", str(self.axis), AXES)

    def order(self, layer: Layer) -> Int[Tensor, " in"] | None:
        """Tap by tap, all input channels: columns whose blocks lie beside each other.

        Raises:
            ValueError: the number of input channels is not divisible by m.
        """
        if self.axis == "columns" or layer.taps == 1:
            return None
        width = layer.weight.shape[1]
        channels = width // layer.taps
        if channels % self.m:
            raise ValueError(
                f"{self.n}:{self.m} needs input channels divisible by {self.m}, got {channels} in "
                f"layer {layer.name!r} ({width} inputs: {channels} channels of {layer.taps} taps). "
                f"Exclude the layer, choose another m, or pool along the "
                f"whole patch with NM({self.n}, {self.m}, axis='columns')."
            )
        return torch.arange(width).view(channels, layer.taps).T.flatten()

    @property
    def fixed(self) -> tuple[int, int]:
        """n of m, whatever the budget."""
        return self.n, self.m

    def beside(self, recipe: Composition) -> str | None:
        """Refuses an allocation that would share what is fixed."""
        if recipe.allocation.equal_shares:
            return None
        return (
            f"{self!r} fixes every count, so `allocation` must be Uniform(), got "
            f"{recipe.allocation!r}."
        )

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per block.

        Raises:
            ValueError: the layer's input width is not divisible by m.
        """
        width = scores.shape[1]
        if width % self.m:
            raise ValueError(
                f"{self.n}:{self.m} needs input widths divisible by {self.m}, got {width} in layer "
                f"{name!r}. Exclude the layer, or choose another m."
            )
        return scores.reshape(-1, self.m)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The blocks' masks in the shape of the weight."""
        return mask.reshape(shape)
