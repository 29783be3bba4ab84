"""Schedules: in how many steps the budget is reached, and what happens between them."""

from prunus.schedules.steps import (
    SCHEDULES,
    AtInit,
    Iterative,
    OneShot,
    Refine,
    Rewinding,
    Schedule,
    Step,
    steps_of,
)

__all__ = [
    "SCHEDULES", "AtInit", "Iterative", "OneShot", "Refine", "Rewinding", "Schedule", "Step",
    "steps_of",
]  # fmt: skip
