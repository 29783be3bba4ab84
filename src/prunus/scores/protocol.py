"""How a score is called, for weights and for classes of nodes."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.nodes import ClassView
from prunus.parts import ScoreFacts

__all__ = ["Score"]


@runtime_checkable
class Score(ScoreFacts, Protocol):
    """One number per weight, or per class of a group of nodes; larger means keep."""

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """One number per weight.

        Raises:
            ValueError: a score that knows whole classes alone.
        """
        raise ValueError(
            f"{self!r} scores whole nodes, got the weights of layer {layer.name!r}. Use Node()."
        )

    def blocks(self, view: Any) -> Float[Tensor, " blocks"] | None:
        """One number per residual block of a chain, a `BlockView`; None where it scores others."""
        return None

    def experts(self, view: Any) -> Float[Tensor, " experts"] | None:
        """One number per expert of a layer, an `ExpertView`; None where it scores others."""
        return None

    def classes(self, view: ClassView) -> Float[Tensor, " classes"] | None:
        """One number per class; None where the numbers of the weights are to be reduced."""
        return None
