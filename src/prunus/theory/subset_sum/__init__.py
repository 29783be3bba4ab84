"""Target networks inside random ones: subset sums, their law, the construction and its bounds."""

from prunus.theory.subset_sum.bounds import network_items_needed, weight_precision
from prunus.theory.subset_sum.construction import Block, Construction, construct
from prunus.theory.subset_sum.law import (
    draw_items,
    failure_probability,
    items_needed,
    largest_error,
    least_items,
    median_error,
    single_items_needed,
)
from prunus.theory.subset_sum.solver import nearest_single, nearest_subset

__all__ = [
    "Block",
    "Construction",
    "construct",
    "draw_items",
    "failure_probability",
    "items_needed",
    "largest_error",
    "least_items",
    "median_error",
    "nearest_single",
    "nearest_subset",
    "network_items_needed",
    "single_items_needed",
    "weight_precision",
]
