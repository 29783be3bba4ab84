"""How a joint method is called, and what it answers."""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.granularity import Granularity
from prunus.layer import Layer

__all__ = ["Joint", "JointResult"]


@dataclass(frozen=True, eq=False, kw_only=True)
class JointResult:
    """Masks and weights of one layer.

    Attributes:
        mask: True where a weight is kept, exactly the counts asked for.
        weight: the new weights, exactly zero outside the mask.
        ridge: relative damping used.
    """

    mask: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"]
    ridge: float | None = None


class Joint(Protocol):
    """The call of every joint method."""

    def __call__(
        self, layer: Layer, granularity: Granularity, kept: Int[Tensor, " pools"]
    ) -> JointResult: ...
