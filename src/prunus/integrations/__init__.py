"""prunus inside other frameworks; each is imported only when its name is used."""

import importlib
from typing import Any

from prunus.integrations.adapters import Merged, MergedLayer, merge_adapters

__all__ = ["Merged", "MergedLayer", "merge_adapters"]

_MADE = {  # not in `__all__`: to look at them is to import their framework
    "LightningCallback": "prunus.integrations.lightning_callback",
    "TrainerCallback": "prunus.integrations.trainer_callback",
}


def __getattr__(name: str) -> Any:
    """The class, made on the framework's own; ImportError without the framework."""
    if name in _MADE:
        return importlib.import_module(_MADE[name]).callback_class()
    raise AttributeError(f"module 'prunus.integrations' has no attribute {name!r}")
