"""Pruning at initialisation, measured: the sweep over methods, densities and noise."""

from prunus.bench.at_init.sweep import CONTROL, DENSE, METHODS, Cell, Sweep, sweep

__all__ = ["CONTROL", "DENSE", "METHODS", "Cell", "Sweep", "sweep"]
