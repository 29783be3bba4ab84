"""What a cell may keep, as text: a budget, a density for each layer, or counts for each layer."""

import ast
import functools
from collections.abc import Mapping
from typing import Any

from prunus.budget import Budget, Plan, checked_density
from prunus.check import unknown, whole, written_number

__all__ = [
    "Target",
    "budget_of",
    "budget_text",
    "density_asked",
    "density_text",
    "order",
    "place_text",
    "words",
]

Target = Budget | Plan | Mapping[str, float]

KNOWN = ("density", "parameters", "macs", "bytes", "kept")


def density_text(value: Any) -> str:
    """A grid's density, one for all or {glob of layers: density}, as Python.

    Raises:
        ValueError: outside (0, 1], or no number.
    """
    if isinstance(value, Mapping):
        if not value:
            raise ValueError("densities by layer are {glob of layers: density}, got {}")
        found = {name: checked_density(_share(own), name) for name, own in _named(value)}
        if not any(set(name) & set("*?[") for name in found):
            found = dict(sorted(found.items()))  # of globs the first that matches counts
        return repr(found)
    value = _share(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a density is a number in (0, 1], or a share as 30%, got {value!r}")
    return f"Budget(density={Budget(density=float(value)).value!r})"


def _share(value: Any) -> Any:
    """A share in percent as a number, as the commands take it; all else as it is."""
    percent = isinstance(value, str) and value.strip().endswith("%")
    return written_number(value) if percent else value


def _named(value: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    names = [str(name) for name in value]
    if len(set(names)) < len(names):
        raise ValueError(f"a layer is named twice in {value!r}")
    return list(zip(names, value.values(), strict=True))


def budget_text(entry: Any) -> str:
    """A grid's budget, {target: number} or {kept: {layer or group: count}}, as Python.

    Raises:
        ValueError: an unknown target, or no whole number.
    """
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ValueError(f"a budget has one target, such as parameters: 10000, got {entry!r}")
    ((name, value),) = entry.items()
    if name not in KNOWN:
        raise unknown("budget", str(name), KNOWN)
    if name == "density":
        return density_text(value)
    if name == "kept":
        if not isinstance(value, Mapping) or not value:
            raise ValueError(f"`kept` is {{layer or group: count}}, got {value!r}")
        counts = {own: whole(own, count, low=0) for own, count in _named(value)}
        return f"Plan(kept={dict(sorted(counts.items()))!r})"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`{name}` must be a whole number, got {value!r}")
    given: Any = {name: value}
    return f"Budget({name}={Budget(**given).value:.0f})"


@functools.lru_cache(maxsize=1024)
def budget_of(text: str) -> Target:
    """The target of its form as Python, as `density_text` and `budget_text` write it."""
    if text.startswith("{"):
        by_name: Mapping[str, float] = ast.literal_eval(text)
        return by_name
    kind, _, rest = text.removesuffix(")").partition("(")
    name, _, number = rest.partition("=")
    value = ast.literal_eval(number)
    return Budget(**{name: value}) if kind == "Budget" else Plan(kept=value)


def place_text(budget: str, recipe: str) -> str:
    """The budget as a place in tables, where counts of nodes and of weights are not the same."""
    nodes = budget.startswith("Plan(") and "granularity=Node(" in recipe
    return f"Node{budget}" if nodes else budget


def density_asked(text: str) -> float | None:
    """The density that was asked for; None where it was anything but one number."""
    target = budget_of(text)
    return target.density if isinstance(target, Budget) else None


def words(text: str) -> str:
    """A budget or place as tables show it: `density=0.2`, `kept fc1=78500`; no two alike."""
    target = budget_of(text)
    if isinstance(target, Budget):
        return text.removeprefix("Budget(").removesuffix(")")
    if isinstance(target, Plan):
        head = "kept units " if text.startswith("Node") else "kept "
        return head + ", ".join(f"{name}={count}" for name, count in target.kept.items())
    return "density " + ", ".join(f"{name}={density!r}" for name, density in target.items())


def order(text: str) -> tuple[str, float, str]:
    """A key that puts budgets of one kind together, large ones first."""
    target = budget_of(text)
    if isinstance(target, Budget):
        return target.target, -target.value, text
    if isinstance(target, Plan):
        counts = [count for count in target.kept.values() if isinstance(count, int)]
        return "kept", -float(sum(counts)), text
    return "density by layer", -sum(target.values()) / len(target), text
