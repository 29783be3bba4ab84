"""Determinantal point processes from the definition: enumerate every set."""

import itertools

import numpy as np


def sets(n: int, k: int) -> list[tuple[int, ...]]:
    """All sets of k of n items, in lexicographic order."""
    return list(itertools.combinations(range(n), k))


def k_dpp(kernel: np.ndarray, k: int) -> np.ndarray:
    """P(S) = det(L_S) / Σ det(L_S) over `sets(n, k)`."""
    weights = np.array([np.linalg.det(kernel[np.ix_(s, s)]) for s in sets(len(kernel), k)])
    weights = np.maximum(weights, 0.0)
    return weights / weights.sum()


def elementary(kernel: np.ndarray, k: int) -> float:
    """e_k(λ) as the sum of all principal minors of size k."""
    return sum(np.linalg.det(kernel[np.ix_(s, s)]) for s in sets(len(kernel), k))


def inclusion(probabilities: np.ndarray, n: int, k: int) -> np.ndarray:
    """P(i, j ∈ S) for all pairs, P(i ∈ S) on the diagonal."""
    pairs = np.zeros((n, n))
    for s, p in zip(sets(n, k), probabilities, strict=True):
        pairs[np.ix_(s, s)] += p
    return pairs


def dpp(kernel: np.ndarray) -> dict[tuple[int, ...], float]:
    """P(S) = det(L_S) / det(I + L) over all sets of all sizes."""
    n = len(kernel)
    total = np.linalg.det(np.eye(n) + kernel)
    return {
        s: max(np.linalg.det(kernel[np.ix_(s, s)]), 0.0) / total
        for k in range(n + 1)
        for s in sets(n, k)
    }


def gaussian_edges(inputs: np.ndarray, row: np.ndarray, beta: float, jitter: float) -> np.ndarray:
    """exp(−β‖w_i x_i − w_j x_j‖²) + ε I over the samples, column against column."""
    items = inputs * row
    n = items.shape[1]
    kernel = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            kernel[i, j] = np.exp(-beta * ((items[:, i] - items[:, j]) ** 2).sum())
    return kernel + jitter * np.eye(n)
