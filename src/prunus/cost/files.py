"""The exact size of the files that networks are stored in, from names, types and shapes alone.

A safetensors file is eight bytes, a header in JSON padded to a multiple of eight, and the tensors
one after another, wide types first and by name within a type.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import torch

__all__ = [
    "Entry",
    "FileForm",
    "encoding",
    "file_bytes",
    "file_form",
    "packed_entries",
    "ragged",
    "type_name",
]

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
TENS = 10 ** np.arange(1, 19)

Entry = tuple[str, str, Sequence[int]]  # name, type without "torch.", shape
Numbers = npt.NDArray[np.int64]


def file_bytes(entries: Iterable[Entry]) -> int:
    """The size of a safetensors file of these tensors, header included.

    Raises:
        ValueError: a type that the format has no name for.
    """
    named = {name: (kind, shape) for name, kind, shape in entries}
    form = file_form(tuple((name, kind) for name, (kind, _) in named.items()))
    return form.bytes(*ragged([shape for _, shape in named.values()]))


@dataclass(frozen=True, eq=False)
class FileForm:
    """How a file of some tensors is laid out, whatever their shapes.

    Attributes:
        order: the place among the tensors of each that the file has, in turn.
        sizes: bytes of a number of each, in the file's order.
        text: bytes of the header without its numbers.
    """

    order: Numbers
    sizes: Numbers
    text: int

    def bytes(self, axes: Numbers, ndims: Numbers) -> int:
        """The size of the file.

        Args:
            axes: lengths of the tensors' axes, a row for each, filled up with ones.
            ndims: how many of them each has.
        """
        ends = np.cumsum(axes.prod(axis=1)[self.order] * self.sizes)
        data = int(ends[-1]) if len(ends) else 0
        digits = _digits(ends)
        shapes = int(_digits(axes).sum()) - int((axes.shape[1] - ndims).sum())
        commas = int(np.maximum(ndims - 1, 0).sum())
        starts = len(ends) and 1 + int(digits[:-1].sum())  # each where the one before it ends
        text = self.text + shapes + commas + starts + int(digits.sum())
        return 8 + -(-text // 8) * 8 + data


def ragged(shapes: Sequence[Sequence[int]]) -> tuple[Numbers, Numbers]:
    """Shapes as rows that are filled up with ones, and how many axes each has."""
    columns = list(zip_longest(*shapes, fillvalue=1))
    axes = np.array(columns, dtype=np.int64).reshape(len(columns), len(shapes)).T
    return axes, np.array([len(shape) for shape in shapes], dtype=np.int64)


def _digits(numbers: Numbers) -> Numbers:
    """Decimal digits of whole numbers from 0 on."""
    found: Numbers = np.searchsorted(TENS, numbers, side="right") + 1
    return found


@lru_cache(maxsize=64)
def file_form(named: tuple[tuple[str, str], ...]) -> FileForm:
    """The form of a file of tensors with these names and types.

    Raises:
        ValueError: a type that the format has no name for.
    """
    sizes = [_itemsize(name, kind) for name, kind in named]
    order = sorted(range(len(named)), key=lambda i: (ORDER[named[i][1]], named[i][0]))
    text = 2 - bool(named)  # braces, without the last comma
    for name, kind in named:
        fixed = f':{{"dtype":"{TYPES[kind][0]}","shape":[],"data_offsets":[,]}},'
        text += _shown(name) + len(fixed)
    return FileForm(np.array(order, dtype=np.int64), np.array(sizes, dtype=np.int64)[order], text)


@lru_cache(maxsize=2**16)
def _shown(name: str) -> int:
    """Bytes of a name as JSON writes it."""
    return len(json.dumps(name, ensure_ascii=False).encode())


def _itemsize(name: str, kind: str) -> int:
    if kind not in TYPES:
        raise ValueError(f"Tensor {name!r} has type {kind}, which safetensors cannot store.")
    return TYPES[kind][1]


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
