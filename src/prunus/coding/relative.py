"""Relative indices as Han et al. (2015b) store them: gaps of few bits, fillers where they overflow.

A gap is the number of zeros before a kept entry in row-major order. With B bits, while the gap is
at least 2^B, a filler stands for 2^B − 1 zeros and a zero stored as if it were kept. As symbols:
gaps 0 … 2^B − 1, and 2^B for the filler, which the paper tells by its value, zero.
"""

import numpy as np

__all__ = ["fillers_of", "places", "relative"]


def relative(flat: np.ndarray, bits: int) -> np.ndarray:
    """The symbols of a mask, fillers among them.

    Example:
        >>> mask = np.zeros(60, dtype=bool); mask[[0, 3, 40, 41, 59]] = True
        >>> relative(mask, 4).tolist()
        [0, 2, 16, 16, 4, 0, 16, 1]
    """
    gaps = np.diff(np.flatnonzero(flat), prepend=-1) - 1
    fillers = gaps >> bits
    symbols = np.full(len(gaps) + int(fillers.sum()), 1 << bits, dtype=np.int64)
    symbols[np.cumsum(fillers + 1) - 1] = gaps & ((1 << bits) - 1)
    return symbols


def fillers_of(symbols: np.ndarray, bits: int) -> int:
    """How many of the symbols are fillers."""
    return int((symbols == 1 << bits).sum())


def places(symbols: np.ndarray, bits: int, size: int, kept: int) -> np.ndarray:
    """The places of the kept entries.

    Raises:
        ValueError: their number is not `kept`, or one lies beyond `size`.
    """
    steps = np.where(symbols == 1 << bits, 1 << bits, symbols.astype(np.int64) + 1)
    ends = np.cumsum(steps) - 1
    found: np.ndarray = ends[symbols != 1 << bits]
    if len(found) != kept:
        raise ValueError(f"its gaps lead to {len(found)} entries, not {kept}")
    if kept and int(found[-1]) >= size:
        raise ValueError(f"its gaps lead to entry {int(found[-1])} of {size}")
    return found
