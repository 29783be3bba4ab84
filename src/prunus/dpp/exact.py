"""Exact k-DPPs: determinantal point processes of a fixed size."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from prunus.check import positive, whole
from prunus.dpp import tilt
from prunus.dpp.arrays import rounding_of
from prunus.dpp.projection import draw_projection
from prunus.dpp.spectrum import Spectrum, check_kernel, item_set, log_det, spectrum
from prunus.rng import Draws, drawn

__all__ = ["KDPP"]


@dataclass(frozen=True, eq=False)
class KDPP:
    """The k-DPP of a kernel: P(S) = det(L_S) / e_k(λ) over the sets S with |S| = k.

    The kernel is decomposed on first need, once for every k. No elementary symmetric polynomial is
    ever formed, so kernels on which they over- or underflow are drawn from like any other.

    Args:
        L: kernel (n, n), symmetric and positive semi-definite.
        floor: None, or a number that lets k exceed the rank: floor · trace(L)/n is then added to
            every eigenvalue, with a warning. In the limit the positive eigenvectors are certain and
            the rest is uniform on what they leave. 1e-8 is safe; at 1e-12 the rounding of the
            eigenvectors shows as 1e-4 in the probabilities.

    Raises:
        TypeError: `L` is complex or no array.
        ValueError: `L` is not square, finite, symmetric to 1e-8 and positive semi-definite to 1e-8
            of its largest eigenvalue (the last is found at the first decomposition). A kernel that
            comes in a lower precision may be off by its own rounding: 16 units in the last place of
            its largest entry, and eigenvalues by 8 √n of them, which then count as zero.

    Example:
        >>> import torch
        >>> dpp = KDPP(torch.eye(5) + 0.5)
        >>> len(dpp.sample(2, generator=0))
        2
        >>> dpp.sample(2, generator=0, size=3).shape
        torch.Size([3, 2])

    References:
        Kulesza and Taskar (2011), k-DPPs: fixed-size determinantal point processes; (2012),
        Determinantal point processes for machine learning, section 5. The tilting is derived in
        docs/sampling_dpps.md.
    """

    L: Any
    floor: float | None = field(default=None, kw_only=True)

    _rounding: float = field(init=False, repr=False, default=0.0)

    def __post_init__(self) -> None:
        kernel = check_kernel("L", self.L)
        object.__setattr__(self, "_rounding", rounding_of(self.L))
        object.__setattr__(self, "L", kernel)
        if self.floor is not None:
            positive("floor", self.floor)

    def __repr__(self) -> str:
        floor = "" if self.floor is None else f", floor {self.floor:g}"
        return f"KDPP({self.n} items{floor}; .sample(k), .log_prob(S))"

    @cached_property
    def _spectrum(self) -> Spectrum:
        return spectrum(self.L, self._rounding)

    @property
    def n(self) -> int:
        """Number of items."""
        return int(self.L.shape[0])

    @property
    def rank(self) -> int:
        """The largest k without a floor: eigenvalues above n · 2.2e-16 of the largest.

        A graded kernel L = DAD with D over many decades and A well conditioned is decomposed to
        relative accuracy, and its rank is that of A.
        """
        return self._spectrum.rank

    def sample(
        self, k: int, *, generator: Draws = None, size: int | None = None
    ) -> Int[Tensor, "*size k"]:
        """An exact draw, or several, as ascending item indices.

        The first call decomposes the kernel (O(n³)); further ones, for any k, cost O(n m²) with
        m = min(k, n − k). Same seed, same machine, same library build: same set. Where eigenvalues
        coincide another build may return another set of the same law.

        Args:
            k: size of the set, 0 ≤ k ≤ rank (k = n always works, since there is one such set).
            generator: a `torch.Generator` on the CPU, a seed, or None for torch's own.
            size: how many draws, one after another; None gives one set, without that axis.

        Raises:
            ValueError: k is no whole number in 0..n, or exceeds the numerical rank without `floor`.
        """
        k = whole("k", k, low=0, high=self.n)
        return drawn(lambda source: self._draw(k, source), k, generator, size)

    def _draw(self, k: int, generator: Generator) -> Int[Tensor, " k"]:
        device = self.L.device
        if k == 0:
            return torch.empty(0, dtype=torch.int64, device=device)
        if k == self.n:
            return torch.arange(self.n, device=device)
        part = self._for(k)
        chosen = np.arange(part.rank)
        if k < part.rank:
            x = tilt.tilt(part.log_values, k)
            p, _ = tilt.coins(part.log_values, x)
            chosen, _ = tilt.draw_by_rejection(p, k, generator)
        items = draw_projection(part.vectors, chosen + (self.n - part.rank), generator)
        return torch.from_numpy(items).to(device)

    def inclusion(self, k: int) -> Float[Tensor, " n"]:
        """P(i ∈ S) = Σ_j V_ij² P(j ∈ J) for every item i; they sum to k. O(n²k)."""
        k = whole("k", k, low=0, high=self.n)
        if k in (0, self.n):
            return torch.full((self.n,), float(k == self.n), dtype=torch.float64)
        part = self._for(k)
        squares = part.vectors[:, self.n - part.rank :] ** 2
        return torch.from_numpy(squares @ tilt.single_probabilities(part.log_values, k))

    def pair_inclusion(self, k: int) -> Float[Tensor, "n n"]:
        """P(i ∈ S and j ∈ S), with P(i ∈ S) on the diagonal; every row sums to k P(i ∈ S).

        Σ_ab q_ab (V_ia² V_jb² − V_ia V_ja V_ib V_jb) with q_ab = P(a ∈ J and b ∈ J). O(n⁴).
        """
        k = whole("k", k, low=0, high=self.n)
        if k in (0, self.n):
            return torch.full((self.n, self.n), float(k == self.n), dtype=torch.float64)
        part = self._for(k)
        vectors = part.vectors[:, self.n - part.rank :]
        pairs = tilt.pair_probabilities(part.log_values, k)
        squares = vectors**2
        both = squares @ pairs @ squares.T
        for i in range(self.n):
            mixed = vectors[i] * vectors
            both[i] -= np.einsum("ja,ja->j", mixed @ pairs, mixed)
        np.fill_diagonal(both, squares @ tilt.single_probabilities(part.log_values, k))
        return torch.from_numpy(np.maximum((both + both.T) / 2, 0.0))

    def log_prob(self, S: Iterable[int] | Tensor) -> float:
        """log P(S) for a set of item indices; −∞ where det(L_S) vanishes.

        Raises:
            ValueError: an index is out of range or given twice, or |S| exceeds the rank.
        """
        items = item_set(S, self.n)
        if len(items) in (0, self.n):
            return 0.0
        part = self._for(len(items))
        if self._rounding > 0 and self.rank < self.n:  # what counts as zero is in no set
            kernel = part.matrix(items)
        else:
            kernel = self.L.cpu().numpy()[np.ix_(items, items)]
            if self.floor is not None and len(items) > self.rank:
                kernel = kernel + self.floor * float(self.L.diagonal().mean()) * np.eye(len(items))
        return log_det(kernel) - tilt.log_elementary(part.log_values, len(items))

    def log_normaliser(self, k: int) -> float:
        """log e_k(λ), the sum of det(L_S) over all sets of size k."""
        k = whole("k", k, low=0, high=self.n)
        return 0.0 if k == 0 else tilt.log_elementary(self._for(k).log_values, k)

    def _for(self, k: int) -> Spectrum:
        """The spectrum a set of size k is drawn from: floored where k exceeds the rank."""
        part = self._spectrum
        if k <= part.rank:
            return part
        if self.floor is None or part.rank == 0:
            raise ValueError(
                f"k={k} exceeds numerical rank {part.rank} of the {self.n} x {self.n} kernel, so "
                f"every such set has probability 0. Lower k, add a positive jitter eps to the "
                f"kernel's diagonal, or pass floor=1e-8."
            )
        lift = self.floor * float(self.L.diagonal().mean())
        warnings.warn(
            f"k={k} exceeds numerical rank {part.rank}: {lift:.3g} was added to the diagonal of "
            f"the kernel (floor={self.floor:g}). The {part.rank} large eigenvectors become nearly "
            f"certain, the rest nearly uniform.",
            stacklevel=3,
        )
        values = np.zeros(self.n)
        values[self.n - part.rank :] = np.exp(part.log_values)
        return Spectrum(np.log(values + lift), part.vectors)
