"""Functions named on the command line as `package.module:function`."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["look_here", "named_function"]


def look_here() -> None:
    """Let modules in the current folder be found, before all others."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def named_function(option: str, path: str) -> Callable[..., Any]:
    """The callable at `path`; the current folder is searched first.

    Raises:
        ValueError: no colon, nothing there, or nothing that can be called.
    """
    module, colon, attribute = path.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"{option} must be package.module:function, got {path!r}.")
    look_here()
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise  # the module is there; what it imports is not
        raise ValueError(
            f"{option}: there is no module {module!r}. Run in its folder, or set PYTHONPATH."
        ) from None
    except AttributeError:
        from prunus.check import near_matches

        names = [name for name in dir(importlib.import_module(module)) if name[0] != "_"]
        near = near_matches(attribute, names)
        advice = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{option}: {module} has no {attribute!r}.{advice}") from None
    if not callable(found):
        raise ValueError(f"{option}: {path} is a {type(found).__name__}, not a function.")
    function: Callable[..., Any] = found
    return function
