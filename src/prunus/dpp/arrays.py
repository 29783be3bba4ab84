"""Finite float64 tensors from whatever comes, and their scale."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.check import as_float64

__all__ = ["float64", "unit_scale"]


def float64(name: str, values: Any, *, dims: int | None = None) -> Tensor:
    """As `prunus.check.as_float64`, for arrays that are read again and again.

    A finite sum proves every entry finite; only where it is not is each entry looked at.
    """
    ready = (
        isinstance(values, Tensor)
        and values.dtype == torch.float64
        and (dims is None or values.ndim == dims)
        and math.isfinite(float(values.sum()))
    )
    return values if ready else as_float64(name, values, dims=dims)


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
