"""Pruning inside the caller's own training: masks that change, and what else a training needs."""

from prunus.training.sparsifier import Sparsifier
from prunus.training.sparsify import sparsify

__all__ = ["Sparsifier", "sparsify"]
