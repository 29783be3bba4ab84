"""A library that is imported when something of it is used."""

import importlib
from typing import Any

from prunus.threads import keep_pinned

__all__ = ["Later"]


class Later:
    """Stands for a module that is imported at the first use of a name in it.

    For SciPy, whose import takes longer than a pruning that solves no system. Its own BLAS, which
    comes with it, keeps to the number of threads that stands where it is first used.

    Args:
        name: of the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):  # what is asked of any object (by doctest, say) is no use of it
            raise AttributeError(key)
        value = getattr(importlib.import_module(self._name), key)
        keep_pinned()
        setattr(self, key, value)  # found without this function from here on
        return value
