"""Poisson approximation: independent coins with the DPP's marginals, conditioned on the size."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from prunus.check import whole
from prunus.dpp import tilt
from prunus.dpp.arrays import float64, unit_scale
from prunus.dpp.reserve import scaling
from prunus.dpp.spectrum import check_kernel
from prunus.later import Later
from prunus.rng import Draws, drawn

__all__ = ["poisson_odds", "poisson_sample"]

lapack = Later("scipy.linalg.lapack")

_FLOAT32 = 1e6  # largest condition of I + αL whose inverse float32 gives to better than 1e-3


def poisson_sample(
    odds: Any, k: int, *, generator: Draws = None, size: int | None = None
) -> Int[Tensor, "*size k"]:
    """A set of exactly k items with P(S) ∝ ∏_{i∈S} odds_i, ascending.

    The k-DPP of a diagonal kernel is this law with odds L_ii.

    Args:
        odds: o_i ≥ 0 of the n items; an infinite one would be certain and is refused.
        k: size of the set, at most the number of positive odds.
        generator: a `torch.Generator` on the CPU, a seed, or None for torch's own.
        size: how many draws, one after another; None gives one set, without that axis.

    Raises:
        ValueError: negative or non-finite odds, or k outside 0..(number of positive odds).
    """
    values = float64("odds", odds, dims=1)
    weights = values.cpu().numpy()
    if (weights < 0).any():
        worst = int(weights.argmin())
        raise ValueError(f"`odds` must be >= 0, got {weights[worst]:.3g} at item {worst}.")
    possible = np.flatnonzero(weights)
    k = whole("k", k, low=0, high=len(weights))
    if k > len(possible):
        raise ValueError(
            f"k={k} exceeds the {len(possible)} items with positive odds. Lower k or raise odds."
        )
    if not 0 < k < len(possible):
        fixed = torch.from_numpy(possible[:k]).to(values.device)
        return drawn(lambda source: fixed, k, generator, size)
    logs = np.log(weights[possible])
    p, _ = tilt.coins(logs, tilt.tilt(logs, k))

    def draw(source: Generator) -> Tensor:
        chosen, _ = tilt.draw_by_rejection(p, k, source)
        return torch.from_numpy(possible[chosen]).to(values.device)

    return drawn(draw, k, generator, size)


def poisson_odds(
    L: Any, k: int, *, log_alpha: float | None = None, accuracy: float = 5e-3
) -> tuple[Float[Tensor, " n"], float]:
    """Odds π/(1 − π) of the DPP of αL, with α such that the expected size is k.

    π = diag K(α), K(α) = I − (I + αL)⁻¹. One evaluation is a Cholesky factorisation and a
    triangular inverse; log α comes from a bracketed secant, two to three evaluations from a good
    start.

    Args:
        L: kernel (n, n), symmetric and positive semi-definite.
        k: expected size, 0 < k < n.
        log_alpha: where to start; a stochastic estimate of the answer where None.
        accuracy: relative accuracy of the expected size.

    Returns:
        the odds, and log α.

    Raises:
        ValueError: a bad kernel or k, or a rank too small for k.
    """
    kernel = check_kernel("L", L)
    k = whole("k", k, low=1, high=len(kernel) - 1)
    matrix, exponent = unit_scale(kernel.cpu().numpy())
    shift = exponent * float(np.log(2.0))
    scale = float(np.trace(matrix)) / len(matrix)
    widest = float(np.abs(matrix).sum(1).max())  # no eigenvalue is larger
    if scale <= 0:
        raise ValueError("The kernel must have a positive trace, got a kernel of zeros.")
    if log_alpha is None:  # the signs are fixed: the odds are a function of the kernel
        x = scaling(matrix, k, torch.Generator().manual_seed(0))
    else:
        x = log_alpha + shift
    low, high, below, above = -np.inf, np.inf, 0.0, 0.0  # sizes in log-odds at both ends
    goal = np.log(k / (len(matrix) - k))
    # Outside these, αL is rounding beside I, or its null space is.
    first, last = -np.log(scale) - 80.0, -np.log(np.finfo(np.float64).eps * np.trace(matrix)) - 3.0
    x = min(max(x, first), last)
    for _ in range(100):
        alpha = float(np.exp(x))
        absent = _absence(matrix, float(x), exact=alpha * widest > _FLOAT32)
        size = len(matrix) - float(absent.sum())
        if abs(size - k) <= accuracy * k:
            # λ/(1 + λ) is concave, so π_i lies between αL_ii/(1 + αλ₁) and αL_ii/(1 + αL_ii):
            # rounding may not take a rare item's probability to zero, or below.
            alone = alpha * matrix.diagonal()
            present = np.clip(1.0 - absent, alone / (1 + alpha * widest), alone / (1 + alone))
            return torch.from_numpy(present / absent).to(kernel.device), float(x) - shift
        at = np.log(max(size, 1e-300) / (len(matrix) - size))
        if size < k:
            low, below = x, at
        else:
            high, above = x, at
        if np.isinf(low) or np.isinf(high):
            # Log-odds of the size grow by at most one per unit of log α.
            x = x + 1.5 * (goal - at) + np.copysign(0.1, goal - at)
        else:
            share = (goal - below) / (above - below)
            x = low + min(max(share, 0.05), 0.95) * (high - low)
        if low >= last or high < first:
            break
        x = min(max(x, first), last)
    raise ValueError(
        f"No scaling of the kernel gives an expected size of {k}: its rank is too small. "
        f"Lower k or add a jitter to the diagonal."
    )


def _absence(matrix: np.ndarray, log_alpha: float, *, exact: bool) -> np.ndarray:
    """1 − π = diag (I + αL)⁻¹, the squared column norms of the inverse Cholesky factor.

    In float32 unless `exact`: I + αL has no eigenvalue below one, so its inverse stands well.
    """
    shifted = np.multiply(
        matrix, np.exp(log_alpha), dtype=np.float64 if exact else np.float32, casting="same_kind"
    )
    if not exact:  # far below rounding beside I, and products of tiny numbers would be subnormal
        shifted[np.abs(shifted) < 1e-10] = 0.0
    shifted[np.diag_indices(len(matrix))] += 1.0
    factorise, invert = (lapack.dpotrf, lapack.dtrtri) if exact else (lapack.spotrf, lapack.strtri)
    factor, fault = factorise(shifted.T, lower=1, clean=1, overwrite_a=1)
    if fault:
        raise ValueError(
            "The kernel is not positive semi-definite: I + αL could not be factorised. "
            "Build it in float64 from a Gram matrix."
        )
    inverse, _ = invert(factor, lower=1, overwrite_c=1)
    absent: np.ndarray = np.einsum("ri,ri->i", inverse, inverse).astype(np.float64)
    return absent
