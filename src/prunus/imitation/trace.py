"""The order in which a group's classes come in: the sets of all counts, each inside the next."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Taken", "Trace", "completed"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """Every candidate once, the best first.

    Attributes:
        order: places of the classes.
        pools: runs of equal length that the classes fall into; see `Group.pools`.
        size: number of classes, candidates or not.
    """

    order: Int[Tensor, " candidates"]
    size: int
    pools: int = 1

    def mask(self, kept: Int[Tensor, " pools"]) -> Bool[Tensor, "pools units"]:
        """The first `kept[p]` classes of every pool p."""
        found = torch.zeros(self.pools, self.size // self.pools, dtype=torch.bool)
        pool = self.order // found.shape[1]
        for p, count in enumerate(kept.tolist()):
            found[p, self.order[pool == p][:count] % found.shape[1]] = True
        return found


class Taken:
    """Which classes are in, and which may be next: all pools grow alike."""

    def __init__(self, candidates: np.ndarray, pools: int) -> None:
        """Nothing is in yet.

        Args:
            candidates: True for classes that may come in.
            pools: how many runs of equal length the classes fall into.
        """
        self.order: list[int] = []
        self._left = candidates.copy()
        self._pool = np.arange(len(candidates)) // (len(candidates) // pools)
        self._counts = np.zeros(pools, dtype=np.int64)

    @property
    def left(self) -> np.ndarray:
        """True for candidates that are not in."""
        return self._left

    @property
    def open(self) -> np.ndarray:
        """True for those whose pool has no more in it than any other that has some left."""
        some = np.bincount(self._pool[self._left], minlength=len(self._counts)) > 0
        if not some.any():
            return self._left
        least = self._counts[some].min()
        allowed: np.ndarray = self._left & (self._counts == least)[self._pool]
        return allowed

    def add(self, item: int) -> None:
        """One more is in."""
        self.order.append(item)
        self._left[item] = False
        self._counts[self._pool[item]] += 1


def completed(taken: Taken, rank: np.ndarray) -> Int[Tensor, " candidates"]:
    """The order, with all that are left behind it: by falling rank, then by index."""
    while bool(taken.left.any()):
        allowed = np.flatnonzero(taken.open)
        taken.add(int(allowed[rank[allowed].argmax()]))
    return torch.tensor(taken.order, dtype=torch.int64)
