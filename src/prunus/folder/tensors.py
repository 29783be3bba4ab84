"""safetensors files that are written tensor by tensor, so that memory holds one of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from prunus.files import new_file

__all__ = ["NAMES", "TYPES", "Shape", "write_tensors"]

Shape = tuple[torch.dtype, tuple[int, ...]]
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {value: key for key, value in TYPES.items()}


def write_tensors(
    path: Path, shapes: Mapping[str, Shape], tensors: Iterable[tuple[str, Tensor]]
) -> Path:
    """Write a safetensors file that is whole or absent.

    Args:
        path: of the file.
        shapes: {name: (type, shape)} of all tensors, in the order in which they come.
        tensors: (name, tensor) in that order; each may go when the next is asked for.

    Raises:
        ValueError: a tensor is not the one that was announced.
        OSError: the disk is full; what was there before stands.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    expected = iter(shapes.items())
    with new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            wanted = next(expected, None)
            if wanted != (name, (tensor.dtype, tuple(tensor.shape))):
                raise ValueError(
                    f"{path.name}: tensor {name!r} of {tensor.dtype} and shape "
                    f"{tuple(tensor.shape)} was announced as {wanted}."
                )
            _write(file, tensor)
        missing = next(expected, None)
        if missing is not None:
            raise ValueError(f"{path.name}: tensor {missing[0]!r} was announced and never came.")
    return path


def _write(file: IO[bytes], tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)
