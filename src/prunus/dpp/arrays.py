"""Finite float64 tensors from whatever comes, and their scale."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.check import as_float64

__all__ = ["float64", "precision", "rounding_of", "unit_scale"]


def float64(name: str, values: Any, *, dims: int | None = None) -> Tensor:
    """As `prunus.check.as_float64`, for arrays that are read again and again.

    A finite sum proves every entry finite; only where it is not is each entry looked at.
    """
    if not isinstance(values, Tensor):
        return as_float64(name, values, dims=dims)
    values = values.detach()
    ready = (
        values.dtype == torch.float64
        and values.layout is torch.strided
        and (dims is None or values.ndim == dims)
        and math.isfinite(float(values.sum()))
    )
    return values if ready else as_float64(name, values, dims=dims)


def precision(values: Any) -> float:
    """Unit roundoff that the entries came with: of float64 for whole numbers and plain lists."""
    if isinstance(values, Tensor) and values.dtype.is_floating_point:
        return float(torch.finfo(values.dtype).eps)
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return float(np.finfo(values.dtype).eps)
    return float(np.finfo(np.float64).eps)


def rounding_of(kernel: Any) -> float:
    """How far rounding of the entries may have moved a kernel's eigenvalues; 0 for float64.

    Entries that are off by a few units of their own last place, independently, make a matrix of
    norm at most about 2 √n · ε · max |L_ij|; four times that is returned.
    """
    unit = precision(kernel)
    if unit <= np.finfo(np.float64).eps or len(kernel) == 0:
        return 0.0
    return 8.0 * math.sqrt(len(kernel)) * unit * float(abs(as_float64("kernel", kernel)).max())


def unit_scale(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """A kernel times 2^−e, and e: its largest diagonal entry is within 2^±32.

    A power of two changes no digit, and k-DPPs of a kernel and of its multiples are the same; but
    squares of entries beyond 1e±150 leave float64, and those beyond 1e±38 leave float32. The
    matrix itself comes back where its scale is far from both.
    """
    top = float(matrix.diagonal().max()) if len(matrix) else 0.0
    exponent = math.frexp(top)[1]
    if top <= 0 or abs(exponent) <= 32:
        return matrix, 0
    return np.ldexp(matrix, -exponent), exponent
