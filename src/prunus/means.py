"""Means of scores of which some may be NaN or infinite, as networks that have come apart give them.

A network whose score is NaN is worse than any with a number; nothing here turns it into one.
"""

import math
import statistics
from collections.abc import Sequence

__all__ = ["as_loss", "highest", "lowest", "mean", "median", "standard_error", "worst"]


def as_loss(value: float, *, higher: bool) -> float:
    """A score as a number that is better low: NaN as infinity, worse than all others.

    Args:
        value: the score.
        higher: True where a larger score is better.
    """
    if math.isnan(value):
        return math.inf
    return -value if higher else value


def worst(*, higher: bool) -> float:
    """What no score is worse than."""
    return -math.inf if higher else math.inf


def mean(values: Sequence[float]) -> float:
    """The mean; NaN where one is NaN, or where infinities of both signs are among them."""
    if all(math.isfinite(value) for value in values):
        return statistics.fmean(values)
    return sum(values)


def median(values: Sequence[float]) -> float:
    """The median; NaN where one is NaN, which has no place in an order."""
    return math.nan if any(math.isnan(value) for value in values) else statistics.median(values)


def lowest(values: Sequence[float]) -> float:
    """The smallest; NaN where one is NaN."""
    return math.nan if any(math.isnan(value) for value in values) else min(values)


def highest(values: Sequence[float]) -> float:
    """The largest; NaN where one is NaN."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def standard_error(values: Sequence[float]) -> float | None:
    """s / √n; None for fewer than two values, and where one is not finite."""
    if len(values) < 2 or not all(math.isfinite(value) for value in values):
        return None
    return statistics.stdev(values) / math.sqrt(len(values))
