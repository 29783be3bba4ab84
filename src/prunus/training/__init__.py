"""Pruning inside the caller's own training: masks that change, and what else a training needs."""

from prunus.training.connectivity import Connection, connection
from prunus.training.distillation import distillation
from prunus.training.slimming import Slimming, slimming
from prunus.training.sparsifier import Sparsifier
from prunus.training.sparsify import sparsify

__all__ = [
    "Connection",
    "Slimming",
    "Sparsifier",
    "connection",
    "distillation",
    "slimming",
    "sparsify",
]
