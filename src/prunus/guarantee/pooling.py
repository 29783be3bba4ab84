"""Lipschitz constants of pooling layers, exact: from the windows of each axis."""

import math
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.theory.gap.norms import spectral_norm

__all__ = [
    "Average",
    "Maximum",
    "WholeAverage",
    "adaptive_gain",
    "average_gain",
    "maximum_gain",
    "per_axis",
]

Average = nn.AvgPool1d | nn.AvgPool2d
Maximum = nn.MaxPool1d | nn.MaxPool2d
WholeAverage = nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d
LARGEST = 4096  # entries of an axis whose averaging matrix is written out


def per_axis(value: Any, axes: int) -> list[int]:
    """A parameter of a pooling layer for each of its axes."""
    if isinstance(value, int):
        return [value] * axes
    given = [int(v) for v in value]
    return given * axes if len(given) == 1 else given


def maximum_gain(module: Maximum, at: Tensor) -> float:
    """√ of the most windows that read one entry: exact, attained where that entry leads them all.

    Each output moves at most as far as the farthest of its window's entries, so the squares of
    the outputs' moves are at most Σ_windows Σ_entries.
    """
    sizes = at.shape[2:]
    axes = len(sizes)
    stride = module.stride if module.stride is not None else module.kernel_size
    with torch.no_grad():
        outputs = module(at[:1]).shape[2:]
    most = 1
    for n, out, k, s, p, d in zip(
        sizes,
        outputs,
        per_axis(module.kernel_size, axes),
        per_axis(stride, axes),
        per_axis(module.padding, axes),
        per_axis(module.dilation, axes),
        strict=True,
    ):
        read = (torch.arange(out)[:, None] * s - p + torch.arange(k) * d).flatten()
        read = read[(read >= 0) & (read < n)]
        most *= int(torch.bincount(read, minlength=1).max())
    return math.sqrt(most)


def average_gain(module: Average, at: Tensor) -> float:
    """Norm of average pooling: of a Kronecker product of one matrix per axis, so their product.

    The divisor of a window is a product over the axes too, with `ceil_mode` and without
    `count_include_pad`; `divisor_override` divides sums.
    """
    sizes = at.shape[2:]
    axes = len(sizes)
    stride = module.stride if module.stride is not None else module.kernel_size
    divisor = getattr(module, "divisor_override", None)
    gain = 1.0
    for n, k, s, p in zip(
        sizes,
        per_axis(module.kernel_size, axes),
        per_axis(stride, axes),
        per_axis(module.padding, axes),
        strict=True,
    ):
        if n > LARGEST:  # Schur: largest row sum times largest column sum
            windows = math.ceil(k / s)
            gain *= math.sqrt(k * windows) if divisor else math.sqrt(windows)
            continue
        means = F.avg_pool1d(
            torch.eye(n, dtype=torch.float64)[:, None],
            k, s, p, module.ceil_mode, module.count_include_pad,
        )[:, 0]  # fmt: skip
        gain *= _norm((means > 0).double() if divisor else means)
    return gain / abs(float(divisor)) if divisor else gain


def adaptive_gain(module: WholeAverage, at: Tensor) -> float:
    """Norm of adaptive average pooling, as for `average_gain`."""
    sizes = at.shape[2:]
    size = module.output_size
    wanted = [size] * len(sizes) if isinstance(size, int) or size is None else list(size)
    gain = 1.0
    for n, out in zip(sizes, wanted, strict=True):
        if out is None or out == n:
            continue
        if out == 1:
            gain /= math.sqrt(n)
        elif n > LARGEST:
            gain *= math.sqrt(math.ceil(out / n) + 1)  # Schur: so many windows share an entry
        else:
            eye = torch.eye(n, dtype=torch.float64)[:, None]
            gain *= _norm(F.adaptive_avg_pool1d(eye, int(out))[:, 0])
    return gain


def _norm(matrix: Float64[Tensor, "in out"]) -> float:
    return spectral_norm(matrix).value
