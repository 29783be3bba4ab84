"""Tensors as they lie in a saved network: dense, kept values and bits, or a block of slices."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from prunus.cost import encoding

__all__ = ["bits", "packed_tensors", "parsed", "unbits", "unpacked"]


def parsed(folder: Path, part: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of one part.

    Raises:
        ValueError: it is no safetensors file.
    """
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"{folder}: {part} is no safetensors file ({error}).") from None


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


def unpacked(key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Tensor:
    """The tensor that `packed_tensors` put down under `key`."""
    if f"dense|{key}" in tensors:
        return tensors[f"dense|{key}"]
    shape = facts["shapes"][key]
    if f"block|{key}" in tensors:
        block = tensors[f"block|{key}"]
        lines = unbits(tensors[f"lines|{key}"], [sum(shape)]).split(shape)  # type: ignore[no-untyped-call]
        full = torch.zeros(shape, dtype=block.dtype)
        full[_grid(lines)] = block
        return full
    values = tensors[f"values|{key}"]
    filled = unbits(tensors[f"bits|{key}"], shape)
    full = torch.zeros(shape, dtype=values.dtype)
    full[filled] = values
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


def unbits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of this shape that `bits` made bytes of."""
    count = math.prod(shape)
    flat = np.unpackbits(bits.numpy(), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(shape)
