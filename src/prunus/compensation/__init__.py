"""New values for the kept weights (and the bias) that make up for the removed ones.

A compensation is any function `(Layer, mask) -> (weight, bias)` whose weight is exactly zero
outside the mask. `Compensation` lists what it may say of itself beside that.
"""

from collections.abc import Callable

from prunus.compensation.error import output_error
from prunus.compensation.least_squares import LeastSquaresFit, least_squares
from prunus.compensation.methods import LeastSquares, NoCompensation
from prunus.compensation.protocol import Compensation

__all__ = [
    "COMPENSATIONS",
    "Compensation",
    "LeastSquares",
    "LeastSquaresFit",
    "NoCompensation",
    "least_squares",
    "output_error",
]


COMPENSATIONS: dict[str, Callable[..., Compensation]] = {
    "NoCompensation": NoCompensation,
    "LeastSquares": LeastSquares,
}
