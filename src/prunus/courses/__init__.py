"""Courses: schedules that change masks inside the caller's own training loop.

A course stands in a recipe's `schedule`, and `prunus.sparsify` carries it out.
"""

from collections.abc import Callable

from prunus.courses.dynamic import Dynamic, GradientGrowth, RandomGrowth
from prunus.courses.gradual import Gradual
from prunus.courses.protocol import Course, Growth, not_between, updates
from prunus.courses.static import Static

__all__ = [
    "COURSES",
    "GROWTHS",
    "Course",
    "Dynamic",
    "GradientGrowth",
    "Gradual",
    "Growth",
    "RandomGrowth",
    "Static",
    "not_between",
    "updates",
]

COURSES: dict[str, Callable[..., Course]] = {
    "Gradual": Gradual,
    "Dynamic": Dynamic,
    "Static": Static,
}
GROWTHS: dict[str, Callable[..., Growth]] = {
    "RandomGrowth": RandomGrowth,
    "GradientGrowth": GradientGrowth,
}
