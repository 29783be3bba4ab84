"""Calibration: one pass over data that collects what a recipe needs, and nothing else."""

from prunus.calibration.collect import STATISTICS
from prunus.calibration.store import Calibration, calibrate

__all__ = ["STATISTICS", "Calibration", "calibrate"]
