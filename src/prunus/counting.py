"""A share of a whole as a count: the one place that rounds."""

import math
from fractions import Fraction

__all__ = ["count_of"]


def count_of(density: float, total: int) -> int:
    """floor(density · total + 1/2), in exact decimal arithmetic of `repr(density)`.

    Example:
        >>> count_of(0.1, 10), count_of(0.25, 2), count_of(1 - 0.9, 10)
        (1, 1, 1)
    """
    return math.floor(Fraction(repr(float(density))) * total + Fraction(1, 2))
