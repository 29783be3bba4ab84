"""Files are data, and doubted: read within limits, through a schema, before anything is made.

Every account that prunus reads (networks, calibrations, plans, certificates, records) passes
`read_json`, and every file of tensors `read_tensors`. What is wrong is a ValueError that names the
file and the field, whatever the bytes are; no field makes more memory than the file has bytes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from prunus.check import brief

__all__ = [
    "Count",
    "Fault",
    "Probability",
    "Schema",
    "Shape",
    "Size",
    "Spread",
    "check",
    "json_object",
    "read_json",
    "read_tensors",
    "stored_json",
    "text_of",
    "validated",
]

T = TypeVar("T")
LARGEST = 2**28  # bytes of an account
DEPTH = 32  # of lists and objects inside each other
WORD = 2**63  # whole numbers beyond this are no counts of anything
SHOWN = 60  # characters of a bad value that a message tells

Count = Annotated[int, Field(ge=0, lt=WORD)]
Size = Annotated[int, Field(ge=1, lt=WORD)]
Probability = Annotated[float, Field(ge=0, le=1)]
# A measured value that may be NaN or infinite; JSON has no word for these, so null is NaN too.
Spread = Annotated[float, Field(allow_inf_nan=True)]


class Schema(BaseModel):
    """An object of a file: exact types, and no field that is not declared is looked at."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())


class Fault(ValueError):
    """A field of a file that is not what it must be."""

    def __init__(self, source: object, field: str, said: str) -> None:
        super().__init__(f"{source}: `{brief(field)}` {brief(said, 600)}")


def check(good: bool, source: object, field: str, said: str) -> None:
    """Raise a Fault unless `good`."""
    if not good:
        raise Fault(source, field, said)


def json_object(text: str | bytes, source: object) -> dict[str, Any]:
    """The JSON object of a text, without duplicates, depth, or numbers that nothing counts.

    Args:
        text: of the file.
        source: the file, for messages.

    Raises:
        ValueError: it is none, or not within the limits.
    """
    if len(text) > LARGEST:
        raise ValueError(f"{source} has {len(text)} characters, more than the {LARGEST} that are "
                         f"read. Give a file that prunus wrote.")  # fmt: skip
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        found = json.loads(decoded, object_pairs_hook=_object)
    except _Twice as twice:
        raise Fault(source, str(twice), "stands twice in one object.") from None
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{source} is truncated or no JSON ({_short(said)}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{source} must be a JSON object, got {_short(repr(found))}.")
    _within_limits(found, source)
    return found


class _Twice(ValueError):
    """A key that stands twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Twice(_short(key))
            seen.add(key)
    return found


def _within_limits(value: Any, source: object) -> None:
    level: list[tuple[str, Any]] = [("", value)]
    depth = 0
    while level:
        depth += 1
        below: list[tuple[str, Any]] = []
        for place, item in level:
            if isinstance(item, dict):
                parts: Iterable[tuple[Any, Any]] = item.items()
            elif isinstance(item, list):
                parts = enumerate(item)
            else:
                continue
            for key, part in parts:
                if isinstance(key, str):
                    _is_text(key, place or "an object", source)
                if isinstance(part, dict | list):
                    below.append((_join(place, key), part))
                elif isinstance(part, str):
                    _is_text(part, _join(place, key), source)
                elif isinstance(part, int) and not -WORD <= part < WORD:
                    raise Fault(source, _join(place, key), "is a number beyond 64 bits.")
        if below and depth > DEPTH:
            raise Fault(source, _short(below[0][0]), f"lies more than {DEPTH} levels deep.")
        level = below


def _is_text(text: str, place: str, source: object) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Fault(
                source, place, "holds half of a surrogate pair, which is no text."
            ) from None


def _join(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def read_json(text: str | bytes, schema: type[T], source: object) -> T:
    """A JSON object as its schema has it: a `Schema`, or a dataclass of plain fields.

    Args:
        text: of the file.
        schema: what it must be; whole numbers are no floats, and true is no number.
        source: the file, for messages.

    Raises:
        ValueError: it is no JSON within the limits of `json_object`, or a field is not what the
            schema says. File and field are named.
    """
    json_object(text, source)
    if schema not in _ADAPTERS:
        _ADAPTERS[schema] = TypeAdapter(schema)
    try:
        found: T = _ADAPTERS[schema].validate_json(text, strict=True)
    except ValidationError as error:
        raise _fault(error, source) from None
    return found


def validated(values: Any, schema: type[T], source: object, place: str = "") -> T:
    """A part of an object that `json_object` gave, as its schema has it; see `read_json`."""
    if schema not in _ADAPTERS:
        _ADAPTERS[schema] = TypeAdapter(schema)
    try:
        found: T = _ADAPTERS[schema].validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise _fault(error, source, place) from None
    return found


def _fault(error: ValidationError, source: object, place: str = "") -> Fault:
    first = error.errors(include_url=False, include_context=False)[0]
    field = place
    for part in first["loc"]:
        field = _join(field, part)
    if first["type"] == "missing":
        return Fault(source, field, "is missing.")
    said = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    said = said[:1].lower() + said[1:]
    return Fault(source, field or "the whole", f"{said}, got {_short(repr(first['input']))}.")


def stored_json(path: Path, kind: str, newest: int) -> dict[str, Any]:
    """The account of a folder that prunus wrote, within the limits of `json_object`.

    Args:
        path: the file.
        kind: what `kind` must say.
        newest: the newest format that is read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no account of this kind, or of a newer format.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"No {path.name} in {path.parent}. Give a folder that prunus saved."
        )
    facts = json_object(text_of(path), path)
    number = facts.get("format")
    if facts.get("kind") != kind or isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{path} is no {kind} that prunus saved. Give another folder.")
    if number > newest:
        raise ValueError(
            f"{path} has format {number}, newer than {newest}, which this version reads. Upgrade "
            f"prunus."
        )
    return facts


def text_of(path: Path) -> bytes:
    """What is in a file, or of one that is too large, enough to say so."""
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


def shape_of(given: Any) -> tuple[int, ...]:
    """A shape as a file has it: a list of counts, of at most as many entries as memory numbers."""
    if not isinstance(given, list) or len(given) > 64:
        raise ValueError("should be a list of at most 64 sizes")
    total = 1
    for size in given:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"should hold sizes >= 0, got {size!r:.30}")
        total *= max(1, size)
        if total >= WORD:
            raise ValueError("should be the shape of a tensor that memory can hold")
    return tuple(given)


Shape = Annotated[tuple[int, ...], BeforeValidator(shape_of)]


def read_tensors(data: bytes, source: object, part: str) -> dict[str, Any]:
    """The tensors of a safetensors file; they are as large as the file, whatever it says.

    Raises:
        ValueError: it is no such file, or holds a type that torch lacks.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{source}: {part} is no safetensors file ({brief(said)}).") from None
