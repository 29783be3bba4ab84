"""The engine: `prune`, `compare` and `sensitivity`."""

from prunus.engine.compare import Comparison, compare
from prunus.engine.prune import prune
from prunus.engine.sensitivity import SensitivityScan, sensitivity

__all__ = ["Comparison", "SensitivityScan", "compare", "prune", "sensitivity"]
