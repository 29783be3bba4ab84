"""The state of a network as one file: coded weights, and all other tensors as they are.

A safetensors file. `NAME|words` (U16) of a coded weight is its code book (as halves of 16 bits),
the states of its rANS stream (low half first) and the stream's words; with Huffman codes
`NAME|codes` (U8) holds the bits. `NAME|values` are the kept values of a weight without a book.
`NAME|half` is a tensor of type float32 stored as float16; any other name is a tensor as it is,
and small ones stand together in `|others` (U8, see `bundle`).

The words of the header: `format`, `version`, `layers` (JSON: {weight: {shape, dtype, kept, lanes,
k, book, coder}}; a dtype of float32 and a book of F16 are left out), `sha256` of the decoded state
and `crc32` of the file. One entry for a weight, as each costs some 75 bytes of header.
"""

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.coding import bundle, published
from prunus.coding.box import Box, boxed, sound, unboxed
from prunus.coding.layer import BOOK, read_stream, write_stream
from prunus.cost.files import TYPES, type_name
from prunus.progress import track

__all__ = ["FORMAT", "MAX_BYTES", "VERSION", "Coded", "Packed", "digest_of", "pack", "unpack"]

FORMAT = "prunus-compressed"
VERSION = 1
MAX_BYTES = 4 << 30  # of the decoded state, unless more is allowed
MARK = "|"
CODES = {code: getattr(torch, name) for name, (code, _) in TYPES.items() if hasattr(torch, name)}
BOOKS = ("F16", "BF16", "F32", "F64")
NUMBERS = ("kept", "k", "lanes", "bits", "fillers")
FACTS = ("shape", "dtype", "book", "coder", *NUMBERS)


@dataclass(frozen=True, eq=False, kw_only=True)
class Coded:
    """How one weight is stored.

    Attributes:
        mask: True where an entry is kept, in the weight's shape.
        book: the shared values, or None where every value stands for itself.
        codes: place in `book` of every kept entry in row-major order.
        coder: of the mask; None for the one that takes least; "huffman" for the published file.
        bits: of a relative index, with "huffman".
    """

    mask: Tensor
    book: Tensor | None = None
    codes: np.ndarray | None = None
    coder: str | None = None
    bits: int = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """A file's bytes and what they are spent on.

    Attributes:
        data: the whole file.
        parts: {weight: {part: bytes}}, and the other tensors and the header under "".
        layers: what the header says of each weight.
    """

    data: bytes
    parts: Mapping[str, Mapping[str, float]]
    layers: Mapping[str, Mapping[str, Any]]


def pack(
    state: Mapping[str, Tensor],
    coded: Mapping[str, Coded],
    words: Mapping[str, str],
    *,
    half: frozenset[str] = frozenset(),
    progress: bool | None = None,
) -> Packed:
    """The file of a state.

    Args:
        state: every tensor by name; those in `coded` are not read but where they have no book.
        coded: how the weights are stored.
        words: what else the header is to say.
        half: names of float32 tensors to be stored as float16, which must hold their values.
        progress: as in `progress_bar`.

    Raises:
        ValueError: a name with a `|`, or a type that cannot be stored.
    """
    boxes: dict[str, Box] = {}
    plain: dict[str, Box] = {}
    layers: dict[str, dict[str, Any]] = {}
    parts: dict[str, dict[str, float]] = {}
    for name, value in track(state.items(), "coding", total=len(state), progress=progress):
        if MARK in name:
            raise ValueError(f"Tensor {name!r} has a `{MARK}` in its name, which marks parts here.")
        if name in coded:
            made, layers[name], parts[name] = _coded(value, coded[name])
            boxes |= {f"{name}{MARK}{part}": box for part, box in made.items()}
            continue
        stored = value.half() if name in half else value
        plain[name + (f"{MARK}half" if name in half else "")] = _box(stored, name)
    head = {
        "format": FORMAT,
        "version": str(VERSION),
        "layers": json.dumps(layers, separators=(",", ":")),
        "sha256": digest_of(state),
    }
    data = boxed({**boxes, **bundle.bundled(plain)}, {**words, **head})
    other = float(sum(len(box.data) for box in plain.values()))
    spent = other + sum(sum(own.values()) for own in parts.values())
    parts[""] = {"others": other, "header": len(data) - spent}
    return Packed(data=data, parts=parts, layers=layers)


def unpack(
    data: bytes, *, max_bytes: int = MAX_BYTES, source: str = "The file"
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """The state, the masks of the coded weights, and the other words of the header.

    Args:
        data: of the whole file.
        max_bytes: that the decoded state may take, checked before anything is allocated.
        source: what messages begin with.

    Raises:
        ValueError: a truncated, changed, foreign or newer file, or a state that is too large.
    """
    try:
        boxes, words = unboxed(data)
    except ValueError as error:
        raise ValueError(f"{source} {error}. Give a file that `compress` wrote.") from None
    layers = _layers(words, source)
    left = dict(boxes)
    if bundle.NAME in left:
        try:
            left |= bundle.unbundled(left.pop(bundle.NAME))
        except ValueError as error:
            raise ValueError(f"{source} has {error}. Copy it again.") from None
    _affordable(left, layers, max_bytes, source)
    state: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name, facts in track(layers.items(), "decoding", total=len(layers)):
        try:
            own = {p: left.pop(f"{name}{MARK}{p}") for p in _needed(facts)}
        except KeyError as error:
            raise ValueError(f"{source} lacks the tensor {error}. Compress again.") from None
        try:
            state[name], masks[name] = _decoded(facts, own)
        except ValueError as error:
            raise ValueError(
                f"{source} is damaged in layer {name}: {error}. Copy it again."
            ) from None
    for name, box in left.items():
        plain, bar, mark = name.partition(MARK)
        if (bar and (mark != "half" or box.code != "F16")) or plain in state:
            raise ValueError(
                f"{source} holds a tensor {name!r} that belongs to no layer. Compress again."
            )
        found = _tensor(box)
        state[plain] = found.float() if bar else found
    if digest_of(state) != words.get("sha256"):
        raise ValueError(f"{source} is damaged: its decoded state has another hash. Copy it again.")
    if not sound(data, boxes, words):
        raise ValueError(f"{source} was changed: its checksum is another one. Copy it again.")
    return state, masks, words


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of every tensor's name, type, shape and little-endian bytes, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        digest.update(f"{name}{MARK}{TYPES[type_name(value.dtype)][0]}{list(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _coded(value: Tensor, how: Coded) -> tuple[dict[str, Box], dict[str, Any], dict[str, float]]:
    mask = _matrix(how.mask)
    facts: dict[str, Any] = {"shape": list(value.shape), "kept": int(np.count_nonzero(mask))}
    if value.dtype != torch.float32:
        facts["dtype"] = type_name(value.dtype)
    boxes: dict[str, Box] = {}
    k = 0 if how.book is None else len(how.book)
    book = b"" if how.book is None else _bytes(how.book)
    if how.book is not None:
        facts["k"] = k
        if how.book.dtype != torch.float16:
            facts["book"] = TYPES[type_name(how.book.dtype)][0]
    if how.coder == published.NAME:
        assert how.codes is not None  # the published file shares values
        bits, own, parts = published.write(mask, how.codes, k, how.bits)
        facts |= {"coder": published.NAME, **own}
        boxes["codes"] = Box("U8", (len(book) + len(bits),), book + bits)
    else:
        stream = write_stream(mask, how.codes, k, coder=how.coder)
        facts |= {"coder": stream.coder, "lanes": stream.lanes}
        parts = dict(stream.parts)
        words = book + stream.words.tobytes()
        boxes["words"] = Box("U16", (len(words) // 2,), words)
    if how.book is not None:
        parts["book"] = float(len(book))
    else:
        boxes["values"] = _box(value[how.mask], "values")
        parts["values"] = float(len(boxes["values"].data))
    return boxes, facts, parts


def _needed(facts: Mapping[str, Any]) -> list[str]:
    if facts["coder"] == published.NAME:
        return ["codes"]
    return ["words"] if "k" in facts else ["words", "values"]


def _decoded(facts: Mapping[str, Any], boxes: Mapping[str, Box]) -> tuple[Tensor, Tensor]:
    shape, kept, k = facts["shape"], facts["kept"], facts.get("k", 0)
    lines = shape[0] if len(shape) > 1 else 1
    own = (lines, math.prod(shape) // lines if lines else 0)
    code = facts.get("book", "F16")
    dtype = CODES[TYPES[facts.get("dtype", "float32")][0]]
    size = k * TYPES[type_name(CODES[code])][1]
    first = boxes["codes" if facts["coder"] == published.NAME else "words"]
    if first.code != ("U8" if "codes" in boxes else "U16") or len(first.data) < size:
        raise ValueError("its words have the wrong type or are too few")
    rest = first.data[size:]
    mask: np.ndarray
    codes: np.ndarray | None
    if facts["coder"] == published.NAME:
        mask, codes = published.read(rest, own, kept, k, facts)
    else:
        words = np.frombuffer(rest, dtype="<u2").astype(np.uint16)
        mask, codes = read_stream(words, facts["coder"], facts["lanes"], own, kept, k)
    where = torch.from_numpy(np.ascontiguousarray(mask)).reshape(shape)
    if codes is not None:
        book = _tensor(Box(code, (k,), first.data[:size]))
        values = book[torch.from_numpy(codes.astype(np.int64))].to(dtype)
    else:
        values = _tensor(boxes["values"])
        if values.dtype != dtype or values.shape != (kept,):
            raise ValueError(
                f"it has values {list(values.shape)} of type {type_name(values.dtype)}, not "
                f"[{kept}] of {type_name(dtype)}"
            )
    full = torch.zeros(shape, dtype=dtype)
    full[where] = values
    return full, where


def _layers(words: Mapping[str, str], source: str) -> dict[str, dict[str, Any]]:
    if words.get("format") != FORMAT:
        raise ValueError(f"{source} is no compressed network. Give a file that `compress` wrote.")
    version = words.get("version", "")
    if version != str(VERSION):
        newer = version.isdecimal() and int(version) > VERSION
        raise ValueError(
            f"{source} was written by prunus {words.get('prunus', '?')} in version {version} of "
            f"the format; this one reads version {VERSION}. "
            + ("Update prunus." if newer else "Compress the network again.")
        )
    try:
        layers = json.loads(words.get("layers", ""))
    except (ValueError, RecursionError):
        layers = None
    if not isinstance(layers, dict):
        raise ValueError(f"{source} has a damaged account of its layers. Copy it again.")
    for name, facts in layers.items():
        if not _whole(facts):
            raise ValueError(f"{source} has a damaged account of layer {name}. Copy it again.")
    return layers


def _whole(facts: Any) -> bool:
    """Whether a layer's facts are there and have the types that reading needs."""
    if not isinstance(facts, dict) or not set(facts) <= set(FACTS):
        return False
    shape, coder = facts.get("shape"), facts.get("coder")
    if not isinstance(shape, list) or not shape or not isinstance(coder, str):
        return False
    needed = {"kept", "k", "bits", "fillers"} if coder == published.NAME else {"kept", "lanes"}
    if not needed <= set(facts):
        return False
    numbers = [*shape, *(facts[name] for name in facts if name in NUMBERS)]
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
        return False
    known = facts.get("dtype", "float32") in TYPES and facts.get("book", "F16") in BOOKS
    return known and 1 <= facts.get("k", 1) <= BOOK


def _affordable(
    boxes: Mapping[str, Box],
    layers: Mapping[str, Mapping[str, Any]],
    max_bytes: int,
    source: str,
) -> None:
    """Refuse what would take more than `max_bytes`, before any of it is allocated."""
    size = sum(len(box.data) for name, box in boxes.items() if MARK not in name)
    for facts in layers.values():
        size += math.prod(facts["shape"]) * TYPES[facts.get("dtype", "float32")][1]
    if size > max_bytes:
        raise ValueError(
            f"{source} says that it decodes to {size} bytes, more than max_bytes={max_bytes}. "
            f"Raise `max_bytes` if you trust it."
        )


def _matrix(mask: Tensor) -> np.ndarray:
    lines = mask.shape[0] if mask.ndim > 1 else 1
    width = mask.numel() // lines if lines else 0
    return np.ascontiguousarray(mask.cpu().numpy()).reshape(lines, width)


def _box(value: Tensor, name: str) -> Box:
    kind = type_name(value.dtype)
    if kind not in TYPES:
        raise ValueError(f"Tensor {name!r} has type {kind}, which safetensors cannot store.")
    return Box(TYPES[kind][0], tuple(value.shape), _bytes(value))


def _bytes(value: Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    if flat.numel() == 0:
        return b""
    numbers = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big":
        numbers = numbers.reshape(-1, value.element_size())[:, ::-1]
    return numbers.tobytes()


def _tensor(box: Box) -> Tensor:
    dtype = CODES[box.code]
    if not box.data:
        return torch.zeros(box.shape, dtype=dtype)
    numbers = np.frombuffer(box.data, dtype=np.uint8)
    if sys.byteorder == "big":
        numbers = numbers.reshape(-1, dtype.itemsize)[:, ::-1]
    return torch.from_numpy(numbers.copy()).view(dtype).reshape(box.shape)
