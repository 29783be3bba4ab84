"""Functions named on the command line as `package.module:function`."""

import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Interrupted", "OwnError", "look_here", "named_function"]


class OwnError(Exception):
    """An error in the user's own code, with its place; `main` prints it as one line."""


class Interrupted(Exception):
    """Ctrl-C, with what is there and how to go on; `main` prints it."""


def look_here() -> None:
    """Let modules in the current folder be found, before all others."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def named_function(option: str, path: str) -> Callable[..., Any]:
    """The callable at `path`; the current folder is searched first.

    Where it fails, an `OwnError` names the option, the file and the line.

    Raises:
        ValueError: no colon, nothing there, or nothing that can be called.
        OwnError: the module fails while it is imported.
    """
    module, colon, attribute = path.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"{option} must be package.module:function, got {path!r}.")
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(
            f"{option} must be package.module:function, a module as `import` names it, got "
            f"{path!r}. For a file write its name without .py, and run in its folder."
        )
    look_here()
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name):
            raise OwnError(_said(f"{option} {path}", error)) from error
        raise ValueError(
            f"{option}: there is no module {module!r}. Run in its folder, or set PYTHONPATH."
        ) from None
    except AttributeError as error:
        if module not in sys.modules:
            raise OwnError(_said(f"{option} {path}", error)) from error
        from prunus.check import near_matches

        names = [name for name in dir(importlib.import_module(module)) if name[0] != "_"]
        near = near_matches(attribute, names)
        advice = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{option}: {module} has no {attribute!r}.{advice}") from None
    except Exception as error:
        if module.startswith("prunus."):
            raise
        raise OwnError(_said(f"{option} {path}", error)) from error
    if not callable(found):
        raise ValueError(f"{option}: {path} is a {type(found).__name__}, not a function.")
    function: Callable[..., Any] = found
    return function if module.startswith("prunus.") else _placed(f"{option} {path}", function)


def _placed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function; what it raises says where."""

    @functools.wraps(function, updated=())
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise OwnError(_said(what, error)) from error

    return run


def _said(what: str, error: Exception) -> str:
    """What failed, and the innermost line that belongs to no installed package."""
    shown = " ".join(str(error).split())[:300]
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{_short(error.filename)}, line {error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if _own(frame.filename)]
        if not own:
            return f"{what}: {type(error).__name__}: {shown}"
        place = f"{_short(own[-1].filename)}, line {own[-1].lineno}: {own[-1].line}"
    return f"{what}: {type(error).__name__}: {shown} ({place})"


def _own(filename: str) -> bool:
    """True for the user's files: no library, nothing of prunus, nothing frozen."""
    if filename.startswith("<"):
        return False
    path = Path(filename)
    here = Path(__file__).resolve().parent.parent
    libraries = "site-packages" in path.parts or "dist-packages" in path.parts
    return not libraries and here not in path.resolve().parents and path.suffix == ".py"


def _short(filename: str) -> str:
    path = Path(filename)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
