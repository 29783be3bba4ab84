"""Grids of task × recipe × budget × seed, and where and how their cells run."""

from prunus.bench.grid.config import Grid, cells
from prunus.bench.grid.load import load_grid, make_grid

__all__ = ["Grid", "cells", "load_grid", "make_grid"]
