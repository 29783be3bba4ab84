"""A chain of swaps: approximate k-DPP draws in O(k²) memory, for many items and few places."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from prunus.check import whole
from prunus.dpp.spectrum import check_kernel
from prunus.rng import Draws, as_generator

__all__ = ["swap_chain"]

# Row items and column items -> that block of the kernel.
Entries = Callable[[np.ndarray, np.ndarray], np.ndarray]


def swap_chain(
    L: Any,
    k: int,
    *,
    steps: int | None = None,
    n: int | None = None,
    start: Any = None,
    generator: Draws = None,
) -> Int[Tensor, " k"]:
    """The set after `steps` proposed swaps; its law tends to the k-DPP's from any start.

    A swap takes a uniform item of S out and a uniform item in; it is accepted with probability
    min(1, det L_S′ / det L_S), which the inverse of L_S gives in O(k²). (One of two items has no
    third set to go to: that rule would swap for ever, so it is drawn from both directly.) After
    about 1.3 n steps the inclusion probabilities agreed with the exact ones on the kernels of image
    layers; there is no proof for other kernels, so the exact sampler is to be preferred where it
    fits.

    Args:
        L: kernel (n, n), or a function (rows, columns) -> block of it, which is then never formed.
        k: size of the set.
        steps: proposals; 2 n where None.
        n: number of items, where `L` is a function.
        start: k items to start from; uniformly drawn where None.
        generator: a `torch.Generator` on the CPU, a seed, or None for torch's own.

    Returns:
        ascending item indices.

    Raises:
        ValueError: a bad kernel or k, or a start whose L_S is singular (add a jitter, or start
            from `greedy_map(L, k)`).

    References:
        Anari, Oveis Gharan, Rezaei (2016), Monte Carlo Markov chain algorithms for sampling
        strongly Rayleigh distributions and determinantal point processes.
    """
    source = as_generator(generator)
    if callable(L):
        entries: Entries = L
        size = whole("n", n, low=0)
    else:
        kernel = check_kernel("L", L).cpu().numpy()
        size = len(kernel)

        def entries(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            block: np.ndarray = kernel[np.ix_(rows, columns)]
            return block

    k = whole("k", k, low=0, high=size)
    steps = 2 * size if steps is None else whole("steps", steps, low=0)
    if start is None:
        keys = torch.rand(size, dtype=torch.float64, generator=source).numpy()
        chosen = np.sort(np.argpartition(keys, k - 1)[:k]) if k else np.empty(0, dtype=np.int64)
    else:
        chosen = np.asarray(torch.as_tensor(start).cpu(), dtype=np.int64).copy()
        inside = len(chosen) == 0 or (chosen.min() >= 0 and chosen.max() < size)
        if len(set(chosen.tolist())) != k or len(chosen) != k or not inside:
            raise ValueError(
                f"`start` must hold k={k} distinct items in 0..{size - 1}, got {len(chosen)} "
                f"({len(set(chosen.tolist()))} distinct). Draw it without replacement."
            )
    if (k, size) == (1, 2):
        if steps:
            weights = torch.from_numpy(entries(np.arange(2), np.arange(2)).diagonal().copy())
            if not float(weights.sum()) > 0:
                raise ValueError("The kernel is zero on both items. Add a jitter to its diagonal.")
            chosen = torch.multinomial(weights, 1, generator=source).numpy()
    elif 0 < k < size:
        _run(entries, chosen, size, steps, source)
    return torch.from_numpy(np.sort(chosen))


def _run(
    entries: Entries, chosen: np.ndarray, size: int, steps: int, generator: torch.Generator
) -> None:
    """Change `chosen` in place by `steps` proposals."""
    k = len(chosen)
    outside = np.setdiff1d(np.arange(size), chosen)
    inverse = _inverse(entries(chosen, chosen))
    accepted = 0
    for first in range(0, steps, 4096):
        count = min(4096, steps - first)
        uniform = torch.rand(count, 3, dtype=torch.float64, generator=generator).numpy()
        leaving = (uniform[:, 0] * k).astype(np.int64)
        coming = (uniform[:, 1] * len(outside)).astype(np.int64)
        for a, b, coin in zip(leaving, coming, uniform[:, 2], strict=True):
            item = outside[b : b + 1]
            v = entries(chosen, item)[:, 0]
            v[a] = 0.0  # the leaving item's row counts no more
            row = inverse[a]
            z = inverse @ v
            z -= row * (z[a] / row[a])  # (L without a)⁻¹ v
            rest = float(entries(item, item)[0, 0]) - float(v @ z)
            if rest <= 0 or coin >= row[a] * rest:
                continue
            z[a] = -1.0
            scaled = row / np.sqrt(row[a])
            inverse -= np.outer(scaled, scaled)
            inverse += np.outer(z / rest, z)
            chosen[a], outside[b] = item[0], chosen[a]
            accepted += 1
            if accepted % (4 * k) == 0:  # rank-two updates collect rounding errors
                inverse = _inverse(entries(chosen, chosen))


def _inverse(block: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(block)
    if values[0] <= len(block) * np.finfo(np.float64).eps * max(values[-1], 0.0):
        raise ValueError(
            f"The kernel is singular on the {len(block)} items of the start. Add a jitter to its "
            f"diagonal, or pass start=greedy_map(L, k)."
        )
    inverse: np.ndarray = (vectors / values) @ vectors.T
    return inverse
