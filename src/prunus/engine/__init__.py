"""The engine: `prune`, `plan`, `compare` and `sensitivity`."""

from prunus.engine.compare import Comparison, compare
from prunus.engine.plan import plan
from prunus.engine.prune import prune
from prunus.engine.sensitivity import SensitivityScan, sensitivity

__all__ = ["Comparison", "SensitivityScan", "compare", "plan", "prune", "sensitivity"]
