"""Prune PyTorch networks and say, before and after, what the pruning costs."""

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBPACKAGES = ("dpp", "theory", "bench", "export", "integrations", "training")
_PLACES = {
    "Budget": "prunus.budget",
    "Calibration": "prunus.calibration",
    "Certificate": "prunus.theory.gap",
    "Group": "prunus.coupling",
    "Plan": "prunus.budget",
    "Pruned": "prunus.result",
    "Recipe": "prunus.recipe",
    "Step": "prunus.schedules",
    "calibrate": "prunus.calibration",
    "certify": "prunus.guarantee",
    "compact": "prunus.surgery.compact",
    "compare": "prunus.engine",
    "load": "prunus.result",
    "perplexity": "prunus.likelihood",
    "plan": "prunus.engine",
    "prune": "prunus.engine",
    "prune_folder": "prunus.folder",
    "recipes": "prunus.presets",
    "sensitivity": "prunus.engine",
    "sparsify": "prunus.training",
    "text": "prunus.tokens",
}

__all__ = sorted([*_PLACES, *_SUBPACKAGES])


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import prunus.cli` stays free of torch."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f"prunus.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'prunus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
