"""Masks that are made once and stay."""

from dataclasses import dataclass
from typing import ClassVar

from prunus.courses.protocol import Course

__all__ = ["Static"]


@dataclass(frozen=True)
class Static(Course):
    """Masks are made before the first step, and held.

    With `RandomK()` and layers as dense as those of another method it is the control of every
    method inside training.
    """

    stop: ClassVar[float] = 0.0

    def density(self, share: float, final: float) -> float:
        """As asked, throughout."""
        return final
