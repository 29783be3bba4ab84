"""Optimal brain surgeon as the textbook has it: downdate the full inverse at every removal."""

import numpy as np


def eliminate(
    row: np.ndarray, gram: np.ndarray, ridge: float, steps: int
) -> tuple[list[int], list[float], np.ndarray]:
    """Removal order of one row, the losses, and the weights after the last removal."""
    n = len(row)
    inverse = np.linalg.inv(gram + ridge * np.trace(gram) / n * np.eye(n))
    w, left = row.copy(), list(range(n))
    order, losses = [], []
    for _ in range(steps):
        price = [w[p] ** 2 / inverse[p, p] for p in left]
        p = left[int(np.argmin(price))]
        order.append(p)
        losses.append(min(price))
        w = w - inverse[:, p] * w[p] / inverse[p, p]
        inverse = inverse - np.outer(inverse[:, p], inverse[p]) / inverse[p, p]
        left.remove(p)
        w[[i for i in range(n) if i not in left]] = 0.0
    return order, losses, w


def sweep(weight: np.ndarray, gram: np.ndarray, mask: np.ndarray, ridge: float) -> np.ndarray:
    """SparseGPT with a given mask, from the definition: no blocks, one inverse per column.

    Column by column, the removed weights of column j are made up for by the columns right of it,
    with the inverse of the damped Gram of the columns j, j+1, … alone.
    """
    n = weight.shape[1]
    damped = gram + ridge * np.trace(gram) / n * np.eye(n)
    w = weight.copy()
    for j in range(n):
        inverse = np.linalg.inv(damped[j:, j:])
        gone = ~mask[:, j]
        error = w[gone, j] / inverse[0, 0]
        w[np.ix_(gone, np.arange(j, n))] -= np.outer(error, inverse[0])
        w[gone, j] = 0.0
    return w
