"""Allocation: how many units each pool keeps, so that the budget is met."""

from prunus.allocation.growth import CostOf, Pools, largest
from prunus.allocation.rules import ALLOCATIONS, Allocation, Global, Uniform

__all__ = ["ALLOCATIONS", "Allocation", "CostOf", "Global", "Pools", "Uniform", "largest"]
