"""Argument checks with one message form: what was wrong, what was given, what to do."""

import difflib
import fnmatch
import math
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "all_finite",
    "any_nan",
    "as_float64",
    "brief",
    "by_reason",
    "closeness",
    "finite",
    "fraction",
    "function",
    "globs",
    "matches",
    "meant",
    "near_matches",
    "positive",
    "unknown",
    "whole",
    "written_number",
]


def any_nan(values: Tensor) -> bool:
    """True where an entry is NaN, which the largest then is."""
    if not values.is_floating_point() or not values.numel():
        return bool(values.isnan().any())
    return math.isnan(float(values.detach().max()))


def all_finite(values: Tensor) -> bool:
    """True where no entry is NaN or infinite; both would show in the extremes."""
    if not values.is_floating_point() or values.layout != torch.strided or not values.numel():
        return bool(torch.isfinite(values).all())
    return all(math.isfinite(x) for x in torch.stack(values.detach().aminmax()).tolist())


def finite(name: str, values: Tensor, advice: str = "Remove the bad values first.") -> Tensor:
    """Return `values`, or raise a ValueError that names the array and its first bad index."""
    if all_finite(values):
        return values
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"`{name}` must be finite, got {values[index].item()} at index {list(index)} "
            f"({int(bad.sum())} of {values.numel()} entries). {advice}"
        )
    return values


def as_float64(name: str, values: Any, *, dims: int | None = None) -> Tensor:
    """Anything `torch.as_tensor` takes, as a finite float64 tensor without gradients.

    Raises:
        TypeError: `values` is complex or no array of numbers.
        ValueError: a NaN or an infinity, or not `dims` axes.
    """
    if isinstance(values, np.ndarray) and not (
        values.flags.writeable and all(step >= 0 for step in values.strides)
    ):
        values = values.copy()  # torch takes neither read-only nor reversed arrays as they are
    try:
        # Plain numbers would pass through torch's default dtype and lose half their digits.
        exact = isinstance(values, Tensor | np.ndarray)
        tensor = torch.as_tensor(values, dtype=None if exact else torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"`{name}` must be an array of numbers, got {type(values).__name__} ({error}). "
            f"Pass a tensor, an array or nested lists."
        ) from None
    if tensor.is_complex():
        raise TypeError(f"`{name}` must be real, got {tensor.dtype}. Pass real numbers.")
    if dims is not None and tensor.ndim != dims:
        raise ValueError(
            f"`{name}` must have {dims} axes, got shape {tuple(tensor.shape)}. Reshape it."
        )
    return finite(name, tensor.detach().to_dense().to(torch.float64))


def whole(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """`value` as an int in [low, high], or a ValueError; True and 2.5 are no whole numbers."""
    limits = f">= {low}" if high is None else f"in [{low}, {high}]"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(
            f"`{name}` must be a whole number {limits}, got {brief(repr(value))}. Pass an int."
        ) from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"`{name}` must be a whole number {limits}, got {number}.")
    return number


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """`value` as a finite float > 0 (or >= 0 with `zero`), or a ValueError."""
    wanted = f"be a finite number {'>= 0' if zero else '> 0'}"
    number = _number(name, value, wanted)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"`{name}` must {wanted}, got {value!r}.")
    return number


def written_number(text: str) -> float:
    """A number as people write it, where 20% is 0.2.

    Raises:
        ValueError: it is none.
    """
    bare = text.strip()
    try:
        value = Decimal(bare.removesuffix("%"))
    except InvalidOperation:
        raise ValueError(f"must be a number, such as 0.2 or 20%, got {text!r}.") from None
    return float(value / 100 if bare.endswith("%") else value)


def fraction(name: str, value: Any, *, zero: bool = False, one: bool = False) -> float:
    """`value` as a float in (0, 1), an end included where `zero` or `one` says so."""
    wanted = f"lie in {'[' if zero else '('}0, 1{']' if one else ')'}"
    number = _number(name, value, wanted)
    inside = (0 < number < 1) or (zero and number == 0) or (one and number == 1)
    if not inside:
        raise ValueError(f"`{name}` must {wanted}, got {value!r}.")
    return number


def _number(name: str, value: Any, wanted: str) -> float:
    """`value` as a float, or a ValueError; True and "0.5" are no numbers."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"`{name}` must {wanted}, got {brief(repr(value))}. Pass a number."
        ) from None


def function(name: str, value: Any, form: str) -> None:
    """Raise a TypeError where an option is neither None nor a function of this form."""
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be a function {form}, got {type(value).__name__}.")


def matches(name: str, glob: str) -> bool:
    """Whether a glob stands for a name; a name in brackets, `experts.proj[3]`, is no class."""
    return name == glob or fnmatch.fnmatchcase(name, glob)


def meant(name: str, globs: Iterable[str]) -> bool:
    """Whether a name, or a glob that it matches, is among these."""
    return any(matches(name, glob) for glob in globs)


def globs(option: str, given: Any) -> tuple[str, ...] | None:
    """The names and globs that an option such as `layers` holds; None where it is left out.

    Raises:
        TypeError: neither a string nor a collection of strings; an iterator can be read only once.
    """
    if given is None:
        return None
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Collection) or not all(isinstance(one, str) for one in given):
        shown = f"a {type(given).__name__}" if isinstance(given, Iterator) else brief(repr(given))
        raise TypeError(f"`{option}` must be a name or glob, or a list of them, got {shown}.")
    return tuple(given)


def closeness(glob: str) -> tuple[int, int, int, int]:
    """How near to one name a glob is: by its letters, then its sets, `?` and fewer `*`."""
    sets = re.findall(r"\[[^\]]+\]", glob)
    rest = re.sub(r"\[[^\]]+\]", "", glob)
    letters = len(rest.replace("*", "").replace("?", ""))
    return letters, len(sets), rest.count("?"), -rest.count("*")


def near_matches(name: str, known: Iterable[str]) -> list[str]:
    """The names most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """{reason: names} of {name: reason}, in order of the reasons' first names."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return found


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is in no table: near matches first, else all known names."""
    names = sorted(known)
    near = near_matches(name, names) if len(name) <= 200 else []
    advice = f"Did you mean {', '.join(near)}?" if near else f"Known: {', '.join(names)}."
    return ValueError(f"Unknown {kind} {brief(repr(name))}. {advice}")


def brief(text: str, most: int = 200) -> str:
    """A text as far as a message has room for it."""
    return text if len(text) <= most else f"{text[:most]}…"
