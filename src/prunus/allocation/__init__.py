"""Allocation: how many units each pool keeps, so that the budget is met."""

from collections.abc import Callable

from prunus.allocation.erk import ERK
from prunus.allocation.growth import CostOf, Pools, largest
from prunus.allocation.lamp import LAMP, lamp_scores
from prunus.allocation.least_variance import LeastVariance
from prunus.allocation.planned import Planned
from prunus.allocation.rules import Allocation, Global, Uniform

__all__ = [
    "ALLOCATIONS",
    "ERK",
    "LAMP",
    "Allocation",
    "CostOf",
    "Global",
    "LeastVariance",
    "Planned",
    "Pools",
    "Uniform",
    "lamp_scores",
    "largest",
]

ALLOCATIONS: dict[str, Callable[..., Allocation]] = {
    "Uniform": Uniform,
    "Global": Global,
    "ERK": ERK,
    "LAMP": LAMP,
    "LeastVariance": LeastVariance,
    "Planned": Planned,
}
