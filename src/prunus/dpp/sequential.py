"""Draws from any marginal kernel, item after item, by one LDLᵀ factorisation in blocks."""

import numpy as np
import torch

from prunus.later import Later

__all__ = ["draw_marginal"]

linalg = Later("scipy.linalg")

_BLOCK = 64


def draw_marginal(kernel: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """A set with P(S ⊇ A) = det(K_A) for every A; ascending items.

    Item i is kept with probability A_ii, the diagonal of what elimination has left of K; the pivot
    is A_ii if it is kept and A_ii − 1 if not. n³/3 multiply-adds, nearly all in matrix products.

    Args:
        kernel: marginal kernel K (n, n), symmetric with eigenvalues in [0, 1]; not changed. Only
            its upper triangle is read.
        generator: source of one uniform per item.

    References:
        Poulson (2019), High-performance sampling of generic determinantal point processes.
    """
    n = len(kernel)
    uniforms = torch.rand(n, dtype=torch.float64, generator=generator).numpy()
    rest = kernel.copy()
    kept = np.zeros(n, dtype=bool)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        size = stop - start
        block = rest[:size, :size].copy()
        pivots = np.empty(size)
        for i in range(size):
            keep = uniforms[start + i] < block[i, i]
            kept[start + i] = keep
            pivots[i] = block[i, i] if keep else block[i, i] - 1.0
            below = block[i, i + 1 :] / pivots[i]
            block[i + 1 :, i + 1 :] -= below[:, None] * block[i, i + 1 :]
            block[i + 1 :, i] = below
        if stop == n:
            break
        # rest[size:, :size] = X D Lᵀ with unit lower L; subtracting X D Xᵀ eliminates the block.
        scaled = linalg.solve_triangular(
            block, rest[:size, size:], lower=True, unit_diagonal=True, check_finite=False
        )
        rest = rest[size:, size:] - (scaled / pivots[:, None]).T @ scaled
    return np.flatnonzero(kept)
