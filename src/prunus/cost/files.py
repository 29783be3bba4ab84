"""The exact size of the files that networks are stored in, from names, types and shapes alone.

A safetensors file is eight bytes, a header in JSON padded to a multiple of eight, and the tensors
one after another, wide types first and by name within a type.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch

__all__ = ["Entry", "encoding", "file_bytes", "packed_entries", "type_name"]

# In the order in which they are laid down.
TYPES: dict[str, tuple[str, int]] = {
    "uint64": ("U64", 8), "int64": ("I64", 8), "float64": ("F64", 8), "complex64": ("C64", 8),
    "float32": ("F32", 4), "uint32": ("U32", 4), "int32": ("I32", 4),
    "bfloat16": ("BF16", 2), "float16": ("F16", 2), "uint16": ("U16", 2), "int16": ("I16", 2),
    "float8_e8m0fnu": ("F8_E8M0", 1), "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1), "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1),
}  # fmt: skip
ORDER = {name: place for place, name in enumerate(TYPES)}
HEADER = 96  # about what one more entry takes of a header

Entry = tuple[str, str, Sequence[int]]  # name, type without "torch.", shape


def file_bytes(entries: Iterable[Entry]) -> int:
    """The size of a safetensors file of these tensors, header included.

    Raises:
        ValueError: a type that the format has no name for.
    """
    named = {name: (kind, shape) for name, kind, shape in entries}
    place, text, digits = 0, 2, 1  # braces
    for name, fixed, size in _laid(tuple((name, kind) for name, (kind, _) in named.items())):
        shape = tuple(named[name][1])
        end = place + size * math.prod(shape)
        before, digits = digits, len(str(end))
        text += fixed + _numbers(shape) + before + digits
        place = end
    text -= bool(named)  # the last comma
    return 8 + -(-text // 8) * 8 + place


@lru_cache(maxsize=64)
def _laid(named: tuple[tuple[str, str], ...]) -> list[tuple[str, int, int]]:
    """Names and types as the file has them in turn: what each entry takes without its numbers, and
    bytes of a number."""
    for name, kind in named:
        _itemsize(name, kind)
    return [
        (name, _shown(name) + len(f':{{"dtype":"{code}","shape":[],"data_offsets":[,]}},'), size)
        for name, kind in sorted(named, key=lambda entry: (ORDER[entry[1]], entry[0]))
        for code, size in (TYPES[kind],)
    ]


@lru_cache(maxsize=2**16)
def _numbers(shape: tuple[int, ...]) -> int:
    """Bytes of a shape between its brackets."""
    return len(",".join(map(str, shape)))


def _itemsize(name: str, kind: str) -> int:
    if kind not in TYPES:
        raise ValueError(f"Tensor {name!r} has type {kind}, which safetensors cannot store.")
    return TYPES[kind][1]


@lru_cache(maxsize=2**16)
def _shown(name: str) -> int:
    """Bytes of a name as JSON writes it."""
    return len(json.dumps(name, ensure_ascii=False).encode())


def type_name(dtype: torch.dtype) -> str:
    """A type without "torch."."""
    return str(dtype).removeprefix("torch.")


def encoding(
    shape: Sequence[int], filled: int, itemsize: int, box: Sequence[int] | None = None
) -> str:
    """How a tensor takes least space: "dense", its "values" and a bit for each entry, or a "block".

    Args:
        shape: of the tensor.
        filled: entries that are not zero.
        itemsize: bytes of an entry.
        box: along each axis, the number of slices that are not all zero; None if unknown.
    """
    numel = math.prod(shape)
    least, kind = filled * itemsize + -(-numel // 8), "values"
    if box is not None and len(shape) > 1:
        block = math.prod(box) * itemsize + -(-sum(shape) // 8)
        if block < least:
            least, kind = block, "block"
    return kind if least + HEADER < numel * itemsize else "dense"


def packed_entries(
    name: str, dtype: str, shape: Sequence[int], filled: int, box: Sequence[int] | None = None
) -> list[Entry]:
    """What a saved network lays down for a tensor of which so many entries are not zero.

    Raises:
        ValueError: a type that the format has no name for.
    """
    kind = encoding(shape, filled, _itemsize(name, dtype), box)
    if kind == "dense":
        return [(f"dense|{name}", dtype, shape)]
    if kind == "values":
        marks = -(-math.prod(shape) // 8)
        return [(f"values|{name}", dtype, [filled]), (f"bits|{name}", "uint8", [marks])]
    return [
        (f"block|{name}", dtype, list(box or ())),
        (f"lines|{name}", "uint8", [-(-sum(shape) // 8)]),
    ]
