"""The engine: `prune` and `compare`."""

from prunus.engine.compare import Comparison, compare
from prunus.engine.prune import prune

__all__ = ["Comparison", "compare", "prune"]
