"""Calibration: one pass over data that collects what a recipe needs, and nothing else."""

from prunus.calibration.calibrating import calibrate
from prunus.calibration.statistics import STATISTICS, Reads, Statistic
from prunus.calibration.store import Calibration

__all__ = ["STATISTICS", "Calibration", "Reads", "Statistic", "calibrate"]
