"""The k-th largest of many numbers, and how many are marked, without sorting or adding them up."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["FEW", "count_true", "counted", "kth_largest", "marked_rows", "places"]

FEW = 16  # rows that are counted, or ranked, one by one
LOOKED_AT = 2**15  # numbers of a sample that tells about where the k-th largest lies
MANY = 2**20  # numbers from which on a sample is taken
WIDE = 256  # units from which on a row of its own is counted faster than all rows together
PIECE = 2**17  # numbers looked at at once: new memory takes longer than the numbers in it


def kth_largest(
    values: Float[Tensor, "*shape"], k: int, among: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """The k-th largest of `values`, k from 1 to their number; NaN counts as the largest.

    On a CPU numpy's partition is used, which takes a tenth of the time of torch's `kthvalue`; of
    millions of numbers it sees those alone among which, by a sample, the k-th must lie.

    Args:
        values: in any shape.
        k: the rank.
        among: True for the values that take part; all where None.

    Raises:
        ValueError: there is no such rank.
    """
    fast = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    size = values.numel() if among is None else int(among.count_nonzero())
    if not 1 <= k <= size:
        raise ValueError(f"`k` must lie in [1, {size}], got {k}.")
    if not fast:
        taking = values.flatten() if among is None else values[among]
        return taking.kthvalue(size - k + 1).values
    values = values.detach()
    if among is not None:  # the others go to the end; to pick these out is slower
        values = torch.where(among, values, -math.inf)
    return torch.tensor(_ranked(values.numpy().reshape(-1), values.numel() - k), dtype=values.dtype)


def _ranked(flat: np.ndarray, place: int) -> float:
    """The number at `place` in rising order; most others are left out of the search.

    A sample has two numbers, a little to both sides of the place. What lies beyond them is counted
    only; where the place turns out not to be between them, all are searched.
    """
    size = len(flat)
    if size >= MANY:
        some = np.sort(flat[:: size // LOOKED_AT])
        share = place / size
        reach = 4 * np.sqrt(share * (1 - share) / len(some)) + 4 / len(some)
        first, last = int((share - reach) * len(some)), math.ceil((share + reach) * len(some))
        low = float(some[first]) if first > 0 else -np.inf
        high = float(some[last]) if last < len(some) else np.nan  # nothing is left out above
        below, left = _between(flat, low, high)
        if below <= place < below + len(left):
            return float(np.partition(left, place - below)[place - below])
    return float(np.partition(flat, place)[place])


def _between(flat: np.ndarray, low: float, high: float) -> tuple[int, np.ndarray]:
    """How many are below `low`, and those from there to `high`; NaN is the largest number."""
    below, found = 0, []
    for start in range(0, len(flat), PIECE):
        piece = flat[start : start + PIECE]
        under = piece < low
        below += int(np.count_nonzero(under))
        taken = np.logical_not(under, out=under)
        if not np.isnan(high):
            taken &= piece <= high
        found.append(piece[taken])
    return below, np.concatenate(found)


def count_true(marked: Bool[Tensor, "..."]) -> int:
    """How many entries are True; torch's sum takes seventy times as long on a CPU."""
    if marked.device.type != "cpu":
        return int(marked.count_nonzero())
    return int(np.count_nonzero(marked.numpy()))


def marked_rows(marked: Bool[Tensor, "rows columns"]) -> Bool[Tensor, " rows"]:
    """Which rows have an entry that is True; torch's `any` takes fifteen times as long on a CPU."""
    return marked.view(torch.uint8).amax(1).bool() if marked.numel() else marked.any(1)


def counted(marked: Bool[Tensor, "pools units"]) -> Int[Tensor, " pools"]:
    """How many entries of each row are True."""
    if len(marked) > FEW and (marked.device.type != "cpu" or marked.shape[1] < WIDE):
        return marked.count_nonzero(1)
    counts = [count_true(row) for row in marked]
    return torch.tensor(counts, dtype=torch.int64, device=marked.device)


def places(marked: Bool[Tensor, " units"]) -> Int[Tensor, " found"]:
    """Where the entries are True, in rising order; torch's `nonzero` takes ten times as long."""
    if marked.device.type != "cpu":
        return marked.nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(marked.numpy()))
