"""The trace moments of Gaussian matrices as exact counts of closed walks, and their table.

`python -m prunus.theory.gap.walks` writes the table that the norm engine reads.
"""

import functools
import itertools
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.check import whole

__all__ = ["ORDERS", "falling_log", "log_walk_table", "trace_moment", "walk_weights"]

ORDERS = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64)
TABLE = "walk_table.npz"
Partition = tuple[int, ...]


def _partitions(order: int) -> list[Partition]:
    """Partitions (a, b, 1, …, 1) of `order`: all others have a zero factor at row 2, column 1."""
    found: list[Partition] = [(order,)]
    for second in range(1, order // 2 + 1):
        found.extend(
            (first, second, *([1] * (order - first - second)))
            for first in range(second, order - second + 1)
        )
    return found


def _content(partition: Partition, n: int) -> int:
    """∏ (n + 2j − i) over the boxes (i, j)."""
    return math.prod(n + 2 * j - i for i, row in enumerate(partition) for j in range(row))


def _constant(partition: Partition, order: int) -> tuple[int, int]:
    """Numerator 2p ∏_{≠(0,0)} (2j − i) and denominator j_λ of a partition's coefficient."""
    columns = [sum(row > j for row in partition) for j in range(partition[0])]
    numerator, hooks = 2 * order, 1
    for i, row in enumerate(partition):
        for j in range(row):
            if (i, j) != (0, 0):
                numerator *= 2 * j - i
            arm, leg = row - j - 1, columns[j] - i - 1
            hooks *= (2 * arm + leg + 1) * (2 * arm + leg + 2)
    return numerator, hooks


def trace_moment(rows: int, columns: int, order: int) -> int:
    """E Tr (G Gᵀ)^p of a standard Gaussian rows × columns matrix, exactly.

    Σ_λ 2p ∏_{≠(0,0)} (2j − i) ∏ (n + 2j − i)(m + 2j − i) / j_λ over partitions of p (zonal
    polynomials, Jack parameter 2).

    Example:
        >>> trace_moment(3, 4, 2)
        96

    References:
        Hanlon, Stanley & Stembridge (1992), Some combinatorial aspects of the spectra of normally
        distributed random matrices.
    """
    n, m = whole("rows", rows, low=1), whole("columns", columns, low=1)
    terms = []
    for partition in _partitions(whole("order", order, low=1)):
        numerator, hooks = _constant(partition, order)
        terms.append((numerator * _content(partition, n) * _content(partition, m), hooks))
    common = math.lcm(*(hooks for _, hooks in terms))
    total, rest = divmod(sum(top * (common // hooks) for top, hooks in terms), common)
    if rest:
        raise ArithmeticError(f"the trace moment of order {order} is no whole number")
    return total


def walk_weights(order: int) -> list[list[int]]:
    """The whole numbers W_p(a, b), a, b ≥ 1, a + b ≤ p + 1, at place [a − 1][b − 1].

    E Tr (G Gᵀ)^p = Σ W_p(a, b) n(n−1)…(n−a+1) · m(m−1)…(m−b+1): the closed walks of length 2p on
    a left and b right vertices, each shape weighted by ∏ (kₑ − 1)!!. Found by Newton differences
    of the exact polynomial; zero outside a + b ≤ p + 1.

    References:
        The comparison it serves: Bandeira & van Handel (2016), Annals of Probability 44.
    """
    p = whole("order", order, low=1)
    partitions = _partitions(p)
    constants = [_constant(partition, p) for partition in partitions]
    common = math.lcm(*(hooks for _, hooks in constants))
    scaled = [top * (common // hooks) for top, hooks in constants]
    # differences[l, a]: a! times the coefficient of n^(a) in partition l's polynomial
    differences = np.empty((len(partitions), p), dtype=object)
    for row, partition in enumerate(partitions):
        values = [_content(partition, n) for n in range(p + 1)]
        for a in range(1, p + 1):
            values = [right - left for left, right in itertools.pairwise(values)]
            differences[row, a - 1] = values[0]
    weighted = differences * np.array(scaled, dtype=object)[:, None]
    table = [[0] * p for _ in range(p)]
    for a in range(1, p + 1):
        for b in range(a, p + 2 - a):
            total = int(np.dot(differences[:, a - 1], weighted[:, b - 1]))
            count, rest = divmod(total, common * math.factorial(a) * math.factorial(b))
            if rest or count < 0:
                raise ArithmeticError(f"W_{p}({a}, {b}) is no whole number >= 0")
            table[a - 1][b - 1] = table[b - 1][a - 1] = count
    return table


def _log(number: int) -> float:
    """ln of a whole number of any size; −inf for 0."""
    if number == 0:
        return -math.inf
    shift = max(number.bit_length() - 1000, 0)
    return math.log(number >> shift) + shift * math.log(2)


def falling_log(n: int, length: int = max(ORDERS)) -> NDArray[np.float64]:
    """ln n(n−1)…(n−a+1) for a = 1..length; −inf where a > n."""
    factors = np.maximum(n - np.arange(length, dtype=np.float64), 0)
    with np.errstate(divide="ignore"):
        logs: NDArray[np.float64] = np.cumsum(np.log(factors))
    return logs


@functools.cache
def log_walk_table() -> dict[int, NDArray[np.float64]]:
    """ln W_p(a, b) for every order of `ORDERS`, as shipped; −inf where the count is 0."""
    with resources.files(__package__).joinpath(TABLE).open("rb") as file, np.load(file) as stored:
        return {p: stored[f"order_{p}"] for p in ORDERS}


def main() -> None:
    """Write the table beside this module."""
    tables: dict[str, Any] = {
        f"order_{p}": np.array([[_log(count) for count in row] for row in walk_weights(p)])
        for p in ORDERS
    }
    np.savez_compressed(Path(__file__).with_name(TABLE), **tables)


if __name__ == "__main__":
    main()
