"""The k-th largest of many numbers, and how many are marked, without sorting or adding them up."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["FEW", "counted", "kth_largest", "places"]

FEW = 16  # rows that are counted, or ranked, one by one
LOOKED_AT = 2**15  # numbers of a sample that tells about where the k-th largest lies
MANY = 2**20  # numbers from which on a sample is taken


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
    """The number at `place` in rising order; every other number may be left out of the search.

    What lies on the wrong side of a number a little beyond the place, as a sample has it, cannot be
    at the place where enough is left; where too little is left, all are searched.
    """
    size = len(flat)
    if size >= MANY:
        some = np.sort(flat[:: size // LOOKED_AT])
        share, reach = place / size, 4 / np.sqrt(len(some))
        if share >= 0.5:  # NaN, the largest, is not below anything
            bound = some[max(int((share - reach * np.sqrt(1 - share)) * len(some)) - 4, 0)]
            left = flat[~(flat < bound)]
            above = size - place
            if above <= len(left):
                return float(np.partition(left, len(left) - above)[len(left) - above])
        else:
            bound = some[min(int((share + reach * np.sqrt(share)) * len(some)) + 4, len(some) - 1)]
            left = flat[flat <= bound]
            if place < len(left):
                return float(np.partition(left, place)[place])
    return float(np.partition(flat, place)[place])


def counted(marked: Bool[Tensor, "pools units"]) -> Int[Tensor, " pools"]:
    """How many entries of each row are True."""
    if len(marked) > FEW:
        return marked.count_nonzero(1)
    counts = [int(row.count_nonzero()) for row in marked]
    return torch.tensor(counts, dtype=torch.int64, device=marked.device)


def places(marked: Bool[Tensor, " units"]) -> Int[Tensor, " found"]:
    """Where the entries are True, in rising order; torch's `nonzero` takes ten times as long."""
    if marked.device.type != "cpu":
        return marked.nonzero().flatten()
    return torch.from_numpy(np.flatnonzero(marked.numpy()))
