"""The target of a pruning turned into whole numbers once: counts, their rounding, the plan."""

from prunus.budget.asked import CODERS, RESOURCES, STORED, TARGETS, Budget, Density
from prunus.budget.counts import as_counts, checked_density, densities_of, share
from prunus.budget.plan import Counts, Plan
from prunus.counting import count_of

__all__ = [
    "CODERS", "RESOURCES", "STORED", "TARGETS", "Budget", "Counts", "Density", "Plan", "as_counts",
    "checked_density", "count_of", "densities_of", "share",
]  # fmt: skip
