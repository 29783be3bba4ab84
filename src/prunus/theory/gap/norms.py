"""Spectral norms that are never too small: dense matrices and implicit maps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from prunus.check import as_float64, fraction, unknown, whole

__all__ = [
    "SafeNorm",
    "block_power",
    "gram_power",
    "lanczos",
    "spectral_norm",
]

EPSILON = 2.0**-52
EXACT_SIDE = 2048  # smaller side up to which the Gram matrix is diagonalised
Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SafeNorm:
    """An upper bound on a spectral norm.

    Attributes:
        value: the bound.
        route: how it was found.
        delta: probability over the random start that it is too small; 0 for the deterministic
            routes.
    """

    value: float
    route: str
    delta: float = 0.0


def spectral_norm(
    matrix: Any,
    *,
    method: Literal["auto", "exact", "gram_power", "lanczos", "block_power", "cheap"] = "auto",
    delta: float = 1e-9,
    generator: Generator | None = None,
) -> SafeNorm:
    """An upper bound on ‖A‖ of a dense matrix.

    "exact" takes the largest eigenvalue of the smaller Gram matrix in float64, times
    1 + 64 max(n, m) 2⁻⁵²; "gram_power" is deterministic and at most 0.3 % high; "lanczos" and
    "block_power" draw a random start from `generator` and are too small with probability at most
    `delta`; "cheap" is min(‖A‖_F, √(‖A‖₁ ‖A‖_∞)); "auto" is exact up to a smaller side of 2048 and
    gram_power beyond.

    Raises:
        ValueError: NaN or infinite entries, an unknown method, a random method without generator.
    """
    a = as_float64("matrix", matrix, dims=2)
    a = a if a.shape[0] <= a.shape[1] else a.T
    size = float(a.abs().max()) if a.numel() else 0.0
    if size == 0:
        return SafeNorm(value=0.0, route="zero")
    if method == "auto":
        method = "exact" if a.shape[0] <= EXACT_SIDE else "gram_power"
    if method in ("lanczos", "block_power") and generator is None:
        raise ValueError(f"`method={method!r}` draws a random start: pass a `generator`.")
    a = a / size  # no overflow or underflow in the squares
    if method == "exact":
        inflate = 1 + 64 * a.shape[1] * EPSILON
        if a.shape[0] == 1:
            return SafeNorm(value=size * float(a.norm()) * inflate, route="exact")
        top = float(torch.linalg.eigvalsh(a @ a.T)[-1])
        return SafeNorm(value=size * math.sqrt(top) * inflate, route="exact")
    if method == "gram_power":
        return SafeNorm(value=size * gram_power(a), route="gram power")
    if method == "cheap":
        columns, rows = a.abs().sum(dim=0).max(), a.abs().sum(dim=1).max()
        value = min(float(a.norm()), float((columns * rows).sqrt()))
        inflate = 1 + 4 * a.numel() * EPSILON
        return SafeNorm(value=size * value * inflate, route="cheap")
    if method not in ("lanczos", "block_power"):
        known = ("auto", "exact", "gram_power", "lanczos", "block_power", "cheap")
        raise unknown("norm method", method, known)
    assert generator is not None
    search = lanczos if method == "lanczos" else block_power
    found = search(lambda x: a @ (a.T @ x), a.shape[0], delta=delta, generator=generator)
    return SafeNorm(value=size * found.value, route=found.route, delta=delta)


def gram_power(matrix: Float[Tensor, "rows columns"], squarings: int = 7) -> float:
    """(tr B^{2^k})^{1/2^{k+1}} ≥ ‖A‖ for B = A Aᵀ, by k squarings; at most r^{1/2^{k+1}} high."""
    gram = matrix @ matrix.T
    log, power = 0.0, 1.0  # B^power = exp(log) · gram
    for _ in range(squarings):
        norm = float(gram.norm())
        gram = gram / norm
        gram = gram @ gram
        log, power = 2 * (log + math.log(norm)), 2 * power
    trace = float(gram.diagonal().sum())
    inflate = 1 + 4 * max(matrix.shape) ** 2 * EPSILON
    return math.exp((log + math.log(trace)) / (2 * power)) * inflate


def lanczos(
    gram: Apply, size: int, *, steps: int = 120, delta: float = 1e-9, generator: Generator
) -> SafeNorm:
    """Bound on ‖A‖ from a random start and `steps` products with A Aᵀ (full orthogonalisation).

    λ_max ≤ θ / (1 − ε) with √ε = ln(1.648 √n / δ) / (2k − 1), θ the largest Ritz value.

    References:
        Kuczyński & Woźniakowski (1992), SIAM J. Matrix Anal. 13, Theorem 4.2 (constants quoted).
    """
    fraction("delta", delta)
    steps = min(whole("steps", steps, low=2), size)
    root = math.log(1.648 * math.sqrt(size) / delta) / (2 * steps - 1)
    if root >= 1:
        raise ValueError(
            f"`steps` = {steps} Lanczos steps prove nothing at delta = {delta}. Take more steps."
        )
    basis = torch.zeros(steps, size, dtype=torch.float64)
    start = torch.randn(size, dtype=torch.float64, generator=generator)
    basis[0] = start / start.norm()
    projected = torch.zeros(steps, steps, dtype=torch.float64)
    used = steps
    for k in range(steps):
        new = gram(basis[k])
        for _ in range(2):  # twice is enough for orthogonality to rounding
            weights = basis[: k + 1] @ new
            projected[: k + 1, k] += weights
            new = new - basis[: k + 1].T @ weights
        length = float(new.norm())
        if k + 1 == steps:
            break
        if length <= 1e-13 * float(projected.abs().max()):
            used = k + 1  # the space is invariant
            break
        basis[k + 1] = new / length
        projected[k + 1, k] = length
    square = projected[:used, :used]
    theta = float(torch.linalg.eigvalsh((square + square.T) / 2)[-1])
    value = math.sqrt(max(theta, 0) / (1 - root * root)) * (1 + 64 * size * EPSILON)
    return SafeNorm(value=value, route="lanczos", delta=delta)


def block_power(
    gram: Apply,
    size: int,
    *,
    steps: int = 60,
    starts: int = 16,
    delta: float = 1e-9,
    generator: Generator,
) -> SafeNorm:
    """max_j (‖(A Aᵀ)^k b_j‖ / s)^{1/2k} with r random unit starts, s = δ^{1/r} / (√(2/π) √n).

    A unit start is nearly orthogonal to the top vector, |⟨b, v⟩| ≤ s, with probability at most
    s √(2n/π) = δ^{1/r}; all r of them with at most δ. Otherwise ‖(AAᵀ)^k b‖ ≥ s ‖A‖^{2k}.
    """
    fraction("delta", delta)
    block = torch.randn(size, starts, dtype=torch.float64, generator=generator)
    block = block / block.norm(dim=0)
    log = torch.zeros(starts, dtype=torch.float64)
    for _ in range(steps):
        block = gram(block)
        lengths = block.norm(dim=0)
        if not bool((lengths > 0).any()):
            return SafeNorm(value=0.0, route="zero", delta=delta)
        log = log + lengths.log()
        block = block / lengths.clamp_min(1e-300)
    small = math.log(delta) / starts - 0.5 * math.log(2 / math.pi) - 0.5 * math.log(size)
    value = math.exp((float(log.max()) - small) / (2 * steps)) * (1 + 64 * size * EPSILON)
    return SafeNorm(value=value, route="block power", delta=delta)
