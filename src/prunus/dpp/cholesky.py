"""One pivoted Cholesky elimination; the pivot rule makes it a sampler, a mode finder or OBS.

Eliminating item p from a positive semi-definite M replaces M by M − M_:p M_p: / M_pp. Which p
comes next is the whole difference between drawing from a projection DPP (random, with probability
M_pp / trace), the greedy mode of a DPP (largest M_pp) and optimal brain surgeon (smallest
w_p² / M_pp).
"""

from collections.abc import Callable

import numpy as np

__all__ = ["eliminate", "largest", "random_pivot", "smallest_loss"]

# The residual diagonal (0 where an item is gone), the carried vector and the items in their places
# -> the place of the next pivot, or None to end.
Pick = Callable[[np.ndarray, np.ndarray | None, np.ndarray], int | None]
# Step, item, M_pp, w_p (0 without a carried vector) and the pivot's column of the factor.
Record = Callable[[int, int, float, float, np.ndarray], None]


def eliminate(
    matrix: np.ndarray | None,
    steps: int,
    pick: Pick,
    *,
    factor: np.ndarray | None = None,
    carry: np.ndarray | None = None,
    compact: int | None = None,
    record: Record | None = None,
) -> np.ndarray:
    """Pivots of at most `steps` eliminations, in order.

    Left-looking: a pivot's column is formed when it is chosen, from the matrix and the columns
    before it, so n·steps²/2 multiply-adds and steps · n memory.

    Args:
        matrix: M (n, n), symmetric, never changed; None where `factor` is given.
        steps: how many items to eliminate.
        pick: the pivot rule; None ends the elimination.
        factor: V (n, m) with M = V Vᵀ, where M itself is not worth forming.
        carry: w (n,), changed as w −= M_:p w_p / M_pp at each pivot; a copy is carried.
        compact: every that many pivots the eliminated items are dropped and M is updated, which
            brings the cost of a whole elimination to n³/6 and the memory to n² + compact · n.
        record: called after each pivot with (step, item, M_pp, w_p, column).
    """
    rows = matrix if matrix is not None else factor
    if rows is None:
        raise ValueError("`eliminate` needs a matrix or a factor, got neither. Pass one of them.")
    n = len(rows)
    items = np.arange(n)
    if matrix is not None:
        d = matrix.diagonal().copy()
    else:
        d = np.einsum("ij,ij->i", rows, rows)
    w = None if carry is None else carry.astype(np.float64)
    height = min(steps, n) if compact is None else min(compact, steps, n)
    columns = np.empty((height, n))
    pivots = np.empty(min(steps, n), dtype=np.int64)
    t = 0
    for step in range(len(pivots)):
        if compact is not None and t == height:
            alive = np.flatnonzero(d > 0)
            c = columns[:t].take(alive, axis=1)
            rows = rows.take(alive, axis=0).take(alive, axis=1)
            rows -= c.T @ c
            items, d = items[alive], rows.diagonal().copy()
            w = None if w is None else w[alive]
            columns = np.empty((height, len(alive)))
            t = 0
        p = pick(d, w, items)
        if p is None:
            return pivots[:step]
        pivots[step] = items[p]
        before = float(d[p]), 0.0 if w is None else float(w[p])
        c = rows[p] if matrix is not None else rows @ rows[p]
        if t:
            c = c - columns[:t, p] @ columns[:t]
        scale = 1.0 / np.sqrt(d[p])
        np.multiply(c, scale, out=columns[t])
        c = columns[t]
        if w is not None:
            w -= c * (w[p] * scale)
            w[p] = 0.0
        d -= c * c
        np.maximum(d, 0.0, out=d)
        d[p] = 0.0
        t += 1
        if record is not None:
            record(step, int(items[p]), *before, c)
    return pivots


def random_pivot(uniforms: np.ndarray, trace: float | None = None) -> Pick:
    """Pick with probability M_pp / Σ M: the chain rule of a projection DPP.

    Args:
        uniforms: one number in [0, 1) per step.
        trace: the exact trace before the first step, for a projection its rank; the sum must fall
            by one per step to 1e-6 of it, which catches a matrix that is no projection.
    """
    state = {"t": 0}

    def pick(d: np.ndarray, w: np.ndarray | None, items: np.ndarray) -> int:
        t = state["t"]
        state["t"] = t + 1
        total = d.cumsum()
        mass = float(total[-1])
        if trace is not None and abs(mass - (trace - t)) > 1e-6 * trace:
            raise ArithmeticError(
                f"The residual of a projection of rank {trace:.0f} must weigh {trace - t:.0f} "
                f"after {t} steps, got {mass:.9g}. The eigenvectors are not orthonormal."
            )
        p = int(total.searchsorted(uniforms[t] * mass, side="right"))
        return p if p < len(d) else int(np.flatnonzero(d)[-1])  # u · mass rounded up to mass

    return pick


def largest(least: float = 0.0) -> Pick:
    """Pick the largest M_pp, ties to the lowest index; stop when none exceeds `least`."""

    def pick(d: np.ndarray, w: np.ndarray | None, items: np.ndarray) -> int | None:
        p = int(d.argmax())
        return p if d[p] > least else None

    return pick


def smallest_loss(allowed: Callable[[np.ndarray], np.ndarray] | None = None) -> Pick:
    """Pick the smallest w_p² / M_pp, ties to the lowest index: optimal brain surgeon's rule.

    Args:
        allowed: items -> which of them may go; all where None.
    """

    def pick(d: np.ndarray, w: np.ndarray | None, items: np.ndarray) -> int | None:
        assert w is not None  # the rule is about a carried vector
        loss = np.full(len(d), np.inf)
        np.divide(w * w, d, out=loss, where=d > 0)
        if allowed is not None:
            loss[~allowed(items)] = np.inf
        p = int(loss.argmin())
        return p if loss[p] < np.inf else None

    return pick
