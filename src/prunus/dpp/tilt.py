"""How many and which eigenvectors: elementary symmetric polynomials without ever forming them.

The law of a set J of eigenvectors is P(J) ∝ ∏_{j∈J} λ_j with |J| = k. Tilting every eigenvalue by
one factor α leaves this law alone and makes |J| = k a likely event of independent coin flips with
p_j = αλ_j / (1 + αλ_j), so that every number is a probability of a Poisson-binomial variable.
Everything here takes log λ (finite, ascending or not) and is NumPy in float64.
"""

import math

import numpy as np
import torch

from prunus.later import Later

__all__ = [
    "draw_by_rejection",
    "draw_by_table",
    "log_elementary",
    "pair_probabilities",
    "single_probabilities",
    "size_table",
    "tilt",
]

special = Later("scipy.special")

_CHUNK_BYTES = 2**28  # of leave-one-out tables at once


def tilt(log_values: np.ndarray, size: float) -> float:
    """log α with Σ αλ/(1+αλ) = size, by Newton steps kept inside a bracket.

    Args:
        log_values: log λ of the n items.
        size: the wanted expected size, inside (0, n).
    """
    low, high = -float(log_values.max()) - 60.0, -float(log_values.min()) + 60.0
    # At `low` the sum is below n·e⁻⁶⁰ and at `high` above n(1 − e⁻⁶⁰); both enclose any size that
    # is a whole number in 1..n−1.
    x = min(max(-float(np.median(log_values)), low), high)
    for _ in range(200):
        p = special.expit(log_values + x)
        excess = float(p.sum()) - size
        if abs(excess) <= 1e-9 * size:
            break
        low, high = (low, x) if excess > 0 else (x, high)
        slope = float((p * (1 - p)).sum())
        step = x - excess / slope if slope > 0 else math.inf
        x = step if low < step < high else (low + high) / 2
        if not low < x < high:  # the bracket is one rounding wide: sizes jump here
            break
    return x


def coins(log_values: np.ndarray, log_alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """p and 1 − p of the tilted flips, both to full relative accuracy."""
    return special.expit(log_values + log_alpha), special.expit(-(log_values + log_alpha))


def draw_by_rejection(
    p: np.ndarray, size: int, generator: torch.Generator
) -> tuple[np.ndarray, int]:
    """Flip all coins until `size` of them show heads; also the number of tries.

    The expected number of tries is about √(2π Σ p(1−p)) ≤ 1.26 √n.
    """
    block = max(4, math.ceil(1.5 * math.sqrt(2 * math.pi * float((p * (1 - p)).sum()))))
    tries = 0
    while True:
        uniform = torch.rand(block, len(p), dtype=torch.float64, generator=generator).numpy()
        heads = uniform < p
        hits = np.flatnonzero(heads.sum(1) == size)
        if len(hits):
            return np.flatnonzero(heads[hits[0]]), tries + int(hits[0]) + 1
        tries += block


def size_table(p: np.ndarray, q: np.ndarray, size: int) -> np.ndarray:
    """f[m, l] = P(l heads among the first m coins) for l ≤ size; positive terms only."""
    table = np.zeros((len(p) + 1, size + 1))
    table[0, 0] = 1.0
    for m in range(len(p)):
        np.multiply(table[m], q[m], out=table[m + 1])
        table[m + 1, 1:] += p[m] * table[m, :-1]
    return table


def draw_by_table(
    p: np.ndarray, q: np.ndarray, size: int, generator: torch.Generator
) -> np.ndarray:
    """The same law as `draw_by_rejection` from exactly n uniforms, whatever they are."""
    table = size_table(p, q, size)
    uniform = torch.rand(len(p), dtype=torch.float64, generator=generator).numpy()
    chosen, left = [], size
    for m in range(len(p), 0, -1):
        if left == 0:
            break
        if uniform[m - 1] * table[m, left] < p[m - 1] * table[m - 1, left - 1]:
            chosen.append(m - 1)
            left -= 1
    return np.asarray(chosen[::-1], dtype=np.int64)


def log_elementary(log_values: np.ndarray, size: int) -> float:
    """log e_k(λ), where e_k itself may lie hundreds of decades outside float64."""
    if size == 0:
        return 0.0
    if size == len(log_values):
        return math.fsum(log_values)
    x = tilt(log_values, size)
    p, q = coins(log_values, x)
    row = np.zeros(size + 1)
    row[0] = 1.0
    for m in range(len(p)):
        shifted = p[m] * row[:-1]
        row *= q[m]
        row[1:] += shifted
    # Σ log(1 + αλ) = −Σ log q, and log q = −log(1 + e^(log λ + x)).
    return float(np.log(row[size]) + np.logaddexp(0.0, log_values + x).sum() - size * x)


def single_probabilities(log_values: np.ndarray, size: int) -> np.ndarray:
    """P(j ∈ J) for every j, from prefix and suffix tables: O(nk), positive terms only."""
    n = len(log_values)
    if size == 0:
        return np.zeros(n)
    if size == n:
        return np.ones(n)
    p, q = coins(log_values, tilt(log_values, size))
    before = size_table(p, q, size)
    after = size_table(p[::-1], q[::-1], size)[::-1]
    without = np.einsum("jl,jl->j", before[:-1, :size], after[1:, size - 1 :: -1])
    single: np.ndarray = p * without / before[n, size]
    return single


def pair_probabilities(log_values: np.ndarray, size: int) -> np.ndarray:
    """P(i ∈ J and j ∈ J) for i ≠ j, zero on the diagonal: O(n²k).

    For each i the coin is taken out and `single_probabilities`' tables run over the others; many i
    go through one table at a time.
    """
    n = len(log_values)
    if size < 2:
        return np.zeros((n, n))
    if size == n:
        return 1.0 - np.eye(n)
    p, q = coins(log_values, tilt(log_values, size))
    whole = size_table(p, q, size)[n, size]
    width = size - 1
    chunk = max(1, _CHUNK_BYTES // (16 * (n + 1) * width))
    pairs = np.zeros((n, n))
    for start in range(0, n, chunk):
        out = np.arange(start, min(start + chunk, n))
        before = _tables_without(p, q, width, out)
        after = _tables_without(p[::-1], q[::-1], width, n - 1 - out)[::-1]
        without = np.einsum("jcl,jcl->cj", before[:-1], after[1:, :, ::-1])
        pairs[out] = p[out, None] * p * without / whole
    np.fill_diagonal(pairs, 0.0)
    return (pairs + pairs.T) / 2


def _tables_without(p: np.ndarray, q: np.ndarray, width: int, out: np.ndarray) -> np.ndarray:
    """f[m, c, l] = P(l heads among the first m coins, coin out[c] left out), l < width."""
    table = np.zeros((len(p) + 1, len(out), width))
    table[0, :, 0] = 1.0
    for m in range(len(p)):
        np.multiply(table[m], q[m], out=table[m + 1])
        table[m + 1, :, 1:] += p[m] * table[m, :, :-1]
        same = out == m
        table[m + 1, same] = table[m, same]
    return table
