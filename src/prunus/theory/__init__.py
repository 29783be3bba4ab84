"""What theory says of pruned networks: tensors in, tensors out; no models, no data sets."""

import importlib
from typing import Any

__all__: list[str] = ["at_init", "gap", "logarithmic", "subset_sum", "teacher_student"]


def __getattr__(name: str) -> Any:
    """Import a theory on first use."""
    if name in __all__:
        return importlib.import_module(f"prunus.theory.{name}")
    raise AttributeError(f"module 'prunus.theory' has no attribute {name!r}")
