"""Values shared within a layer: k-means from a linear start."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Shared", "k_means", "share", "stored_book"]

ROUNDS = 300
COARSE = 2.0**-10  # of the largest value: float16 rounds by less unless it over- or underflows


@dataclass(frozen=True, eq=False, kw_only=True)
class Shared:
    """The kept values of a weight as places in a book.

    Attributes:
        mask: True where an entry is kept, in the weight's shape.
        book: the shared values, in the type in which they are stored.
        codes: a place in `book` for each kept entry, in row-major order.
    """

    mask: Tensor
    book: Tensor
    codes: np.ndarray

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight of these values, zero outside the mask."""
        full = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device)
        codes = torch.from_numpy(self.codes.astype(np.int64)).to(self.mask.device)
        full[self.mask] = self.book.to(self.mask.device)[codes].to(dtype)
        return full


def k_means(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids by Lloyd's iterations from k equally spaced ones, and the cluster of each value.

    A value halfway between two centroids goes to the lower. Empty clusters keep their place during
    the iterations and are dropped at the end.

    Args:
        values: finite, float64.
        k: clusters at most, >= 1.

    References:
        Han et al. (2015b), section 3.1 and 3.2: linear initialisation.

    Example:
        >>> centroids, _ = k_means(np.array([-1, -0.9, -0.2, 0.1, 0.15, 0.5, 0.55, 2.0]), 4)
        >>> centroids.round(4).tolist()
        [-0.95, 0.0167, 0.525, 2.0]
    """
    if len(values) == 0:
        return np.zeros(0), np.zeros(0, dtype=np.uint16)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], k)
    edges = np.zeros(0, dtype=np.int64)
    for _ in range(ROUNDS):
        found = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
        if np.array_equal(found, edges) and len(edges):
            break
        edges = found
        ends = np.concatenate([[0], edges, [len(ordered)]])
        sizes = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(sizes, 1)
        centroids = np.sort(np.where(sizes > 0, means, centroids))
    edges = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2, side="right")
    sizes = np.diff(np.concatenate([[0], edges, [len(ordered)]]))
    codes = np.empty(len(values), dtype=np.uint16)
    codes[order] = np.repeat(np.arange(int((sizes > 0).sum())), sizes[sizes > 0])
    return centroids[sizes > 0], codes


def share(mask: Tensor, weight: Tensor, k: int) -> Shared:
    """The kept entries of a weight by at most k values.

    Args:
        mask: True where an entry is kept.
        weight: of the same shape, finite.
        k: values at most.
    """
    centroids, codes = k_means(weight.detach()[mask].double().cpu().numpy(), k)
    return Shared(
        mask=mask, book=stored_book(torch.from_numpy(centroids), weight.dtype), codes=codes
    )


def stored_book(centroids: Tensor, dtype: torch.dtype) -> Tensor:
    """Centroids as float16, or in the weight's own type where float16 is too coarse for them."""
    own = centroids.detach().cpu()
    half = own.to(torch.float16)
    if len(own) == 0:
        return half
    lost = (half.double() - own.double()).abs() > COARSE * own.double().abs().max()
    return own.to(dtype) if bool(lost.any()) else half
