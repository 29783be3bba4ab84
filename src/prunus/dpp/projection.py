"""Sets drawn from a projection DPP, the second half of every spectral sampler."""

import numpy as np
import torch

from prunus.dpp.cholesky import eliminate, random_pivot

__all__ = ["draw_projection"]

_LARGE = 3000  # items from which few-pivot draws are cheaper by accept/reject
_FEW = 8  # "few" pivots: at most this part of the items


def draw_projection(
    vectors: np.ndarray, chosen: np.ndarray, generator: torch.Generator
) -> np.ndarray:
    """A set S with P(S) = det(K_S), K the projection onto the chosen columns; ascending items.

    The complement of S is drawn from the projection DPP of the other columns, so the smaller of
    both is drawn: m = min(k, n − k) eliminations.

    Args:
        vectors: an orthonormal basis (n, n), or (n, r) where k ≤ r columns are all there are.
        chosen: indices of the k columns.
        generator: source of the uniforms.

    References:
        Hough, Krishnapur, Peres, Virág (2006), Determinantal processes and independence,
        Algorithm 18, in the form of a Cholesky factorisation with random pivots.
    """
    n, width = vectors.shape
    complement = width == n and 2 * len(chosen) > n
    if complement:
        chosen = np.setdiff1d(np.arange(n), chosen, assume_unique=True)
    basis = vectors.take(chosen, axis=1)
    m = len(chosen)
    if m == 0:
        drawn = np.empty(0, dtype=np.int64)
    elif n >= _LARGE and _FEW * m <= n:
        drawn = draw_by_leverage(basis, generator)
    else:
        uniforms = torch.rand(m, dtype=torch.float64, generator=generator).numpy()
        pick = random_pivot(uniforms, trace=float(m))
        if _FEW * m <= n:
            drawn = eliminate(None, m, pick, factor=basis)
        else:
            drawn = eliminate(basis @ basis.T, m, pick)
    if complement:
        return np.setdiff1d(np.arange(n), drawn, assume_unique=True)
    return np.sort(drawn)


def draw_by_leverage(basis: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """The same law by accept/reject: about m log m candidates of O(m²/2), whatever n is.

    A candidate i comes with probability ‖V_i‖²/m and stays with probability residual/‖V_i‖², the
    residual being what is left of V_i outside the span of the rows chosen so far.
    """
    n, m = basis.shape
    leverage = np.einsum("ij,ij->i", basis, basis)
    total = leverage.cumsum()
    span = np.empty((m, m))
    drawn = np.empty(m, dtype=np.int64)
    t = 0
    while t < m:
        uniforms = torch.rand(4 * m, 2, dtype=torch.float64, generator=generator).numpy()
        candidates = total.searchsorted(uniforms[:, 0] * total[-1], side="right").clip(max=n - 1)
        for i, accept in zip(candidates, uniforms[:, 1], strict=True):
            row = basis[i]
            rest = row - (span[:t] @ row) @ span[:t]
            if accept * leverage[i] >= float(rest @ rest):
                continue
            rest -= (span[:t] @ rest) @ span[:t]  # once more: the first pass leaves rounding errors
            span[t] = rest / np.sqrt(rest @ rest)
            drawn[t] = i
            t += 1
            if t == m:
                break
    return drawn
