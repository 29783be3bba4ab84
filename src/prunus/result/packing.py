"""Tensors as they lie in a saved network: dense, kept values and bits, or a block of slices."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunus.cost import encoding
from prunus.reading import check

__all__ = ["bits", "packed_tensors", "unbits", "unpacked"]


FORMS = {"dense": "", "values": "bits", "block": "lines"}  # and what stands beside each


def packed_tensors(key: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor in the form that takes least space.

    As it is; as its non-zero values and one bit per entry; or as the block of those slices along
    its axes that are not all zero, and one bit per slice, as the removal of nodes leaves it.
    """
    filled = value != 0
    lines = [_any(filled, axis) for axis in range(value.ndim)]
    box = [int(line.sum()) for line in lines]
    kind = encoding(value.shape, int(filled.sum()), value.element_size(), box)
    if kind == "dense":
        return {f"dense|{key}": value.contiguous()}
    if kind == "values":
        return {f"values|{key}": value[filled], f"bits|{key}": bits(filled)}
    return {f"block|{key}": value[_grid(lines)], f"lines|{key}": bits(torch.cat(lines))}


def unpacked(key: str, tensors: dict[str, Tensor], shape: tuple[int, ...], path: Path) -> Tensor:
    """The tensor that `packed_tensors` put down under `key`, which is taken out of `tensors`.

    Args:
        key: of the state.
        tensors: of the file.
        shape: that it must have; nothing of another one is made.
        path: of the file, for messages.

    Raises:
        ValueError: it is not there, or in no form that has this shape; the tensor is named.
    """
    forms = [form for form in FORMS if f"{form}|{key}" in tensors]
    check(len(forms) == 1, path, key, f"must be there in one form, is in {len(forms)}.")
    form = forms[0]
    given = tensors.pop(f"{form}|{key}")
    said = f"has {form} entries of shape {tuple(given.shape)}, which make no tensor of {shape}."
    if form == "dense":
        check(tuple(given.shape) == shape, path, key, said)
        return given
    beside = f"{FORMS[form]}|{key}"
    check(beside in tensors, path, beside, "is missing.")
    if form == "block":
        flat = unbits(tensors.pop(beside), (sum(shape),), path, beside)
        lines = flat.split(shape)  # type: ignore[no-untyped-call]
        check(tuple(given.shape) == tuple(int(line.sum()) for line in lines), path, key, said)
        full = torch.zeros(shape, dtype=given.dtype)
        full[_grid(lines)] = given
        return full
    filled = unbits(tensors.pop(beside), shape, path, beside)
    check(tuple(given.shape) == (int(filled.sum()),), path, key, said)
    full = torch.zeros(shape, dtype=given.dtype)
    full[filled] = given
    return full


def _any(filled: Tensor, axis: int) -> Tensor:
    moved = filled.movedim(axis, 0)
    return moved.flatten(1).any(1) if moved.ndim > 1 else moved


def _grid(lines: Sequence[Tensor]) -> tuple[Tensor, ...]:
    places = [line.nonzero().flatten() for line in lines]
    return tuple(torch.meshgrid(*places, indexing="ij"))


def bits(mask: Tensor) -> Tensor:
    """A mask as bytes of eight entries each."""
    return torch.from_numpy(np.packbits(mask.contiguous().reshape(-1).numpy()))


def unbits(
    bits: Tensor, shape: Sequence[int], source: object = "A mask", key: str = "bits"
) -> Tensor:
    """The mask of this shape that `bits` made bytes of.

    Raises:
        ValueError: these are no such bytes, or not as many as the shape has; the tensor is named.
    """
    count = math.prod(shape)
    good = bits.dtype == torch.uint8 and tuple(bits.shape) == ((count + 7) // 8,)
    said = f"has {tuple(bits.shape)} {bits.dtype}, which are no bits of shape {tuple(shape)}."
    check(good, source, key, said)
    beyond = count % 8 and int(bits[-1]) << count % 8 & 0xFF
    check(not beyond, source, key, f"has bits beyond shape {tuple(shape)}.")
    flat = np.unpackbits(bits.numpy(), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(shape)
