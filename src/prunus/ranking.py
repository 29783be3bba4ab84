"""The k-th largest of many numbers, and how many are marked, without sorting or adding them up."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["counted", "kth_largest"]

FEW = 16  # rows that are counted one by one


def kth_largest(
    values: Float[Tensor, "*shape"], k: int, among: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """The k-th largest of `values`, k from 1 to their number; NaN counts as the largest.

    On a CPU numpy's partition is used, which takes a tenth of the time of torch's `kthvalue`.

    Args:
        values: in any shape.
        k: the rank.
        among: True for the values that take part; all where None.

    Raises:
        ValueError: there is no such rank.
    """
    fast = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    if fast:
        flat = values.detach().numpy().reshape(-1)
        if among is not None:
            flat = flat[among.numpy().reshape(-1)]
        size = len(flat)
    else:
        taking = values.flatten() if among is None else values[among]
        size = len(taking)
    if not 1 <= k <= size:
        raise ValueError(f"`k` must lie in [1, {size}], got {k}.")
    if fast:
        return torch.tensor(np.partition(flat, size - k)[size - k], dtype=values.dtype)
    return taking.kthvalue(size - k + 1).values


def counted(marked: Bool[Tensor, "pools units"]) -> Int[Tensor, " pools"]:
    """How many entries of each row are True."""
    if len(marked) > FEW:
        return marked.count_nonzero(1)
    counts = [int(row.count_nonzero()) for row in marked]
    return torch.tensor(counts, dtype=torch.int64, device=marked.device)
