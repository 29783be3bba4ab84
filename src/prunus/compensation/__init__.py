"""New values for the kept weights (and the bias) that make up for the removed ones.

A compensation is any function `(Layer, mask) -> (weight, bias)` whose weight is exactly zero
outside the mask. One that reads statistics names them in an attribute `statistics`.
"""

from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from prunus.compensation.error import output_error
from prunus.compensation.least_squares import LeastSquaresFit, least_squares
from prunus.compensation.methods import LeastSquares, NoCompensation
from prunus.layer import Layer

__all__ = [
    "COMPENSATIONS",
    "Compensation",
    "LeastSquares",
    "LeastSquaresFit",
    "NoCompensation",
    "least_squares",
    "output_error",
]


class Compensation(Protocol):
    """The call of every compensation."""

    def __call__(
        self, layer: Layer, mask: Bool[Tensor, "out in"]
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]: ...


COMPENSATIONS = {"NoCompensation": NoCompensation, "LeastSquares": LeastSquares}
