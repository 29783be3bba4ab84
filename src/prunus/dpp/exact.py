"""Exact determinantal point processes: of a fixed size (k-DPP) and of random size."""

import math
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
from prunus.dpp.arrays import float64, precision, rounding_of
from prunus.dpp.projection import draw_projection
from prunus.dpp.sequential import draw_marginal
from prunus.later import Later
from prunus.rng import Draws, as_generator, drawn

__all__ = ["DPP", "KDPP", "Spectrum", "check_kernel", "spectrum"]

lapack = Later("scipy.linalg.lapack")

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The positive part of a kernel's eigendecomposition.

    Attributes:
        log_values: log λ of the eigenvalues above rounding level, ascending.
        vectors: orthonormal eigenvectors as columns: all n of them, those of `log_values` last.
    """

    log_values: np.ndarray
    vectors: np.ndarray

    @property
    def rank(self) -> int:
        """Number of eigenvalues above rounding level."""
        return len(self.log_values)

    def matrix(self, items: np.ndarray) -> np.ndarray:
        """The kernel of these items that has this spectrum, to relative accuracy of its rows."""
        first = len(self.vectors) - self.rank
        root = self.vectors[items, first:] * np.exp(self.log_values / 2)
        found: np.ndarray = root @ root.T
        return found


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
        items = _item_set(S, self.n)
        if len(items) in (0, self.n):
            return 0.0
        part = self._for(len(items))
        if self._rounding > 0 and self.rank < self.n:  # what counts as zero is in no set
            kernel = part.matrix(items)
        else:
            kernel = self.L.cpu().numpy()[np.ix_(items, items)]
            if self.floor is not None and len(items) > self.rank:
                kernel = kernel + self.floor * float(self.L.diagonal().mean()) * np.eye(len(items))
        return _log_det(kernel) - tilt.log_elementary(part.log_values, len(items))

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


@dataclass(frozen=True, eq=False)
class DPP:
    """The DPP of random size: P(S) = det(L_S) / det(I + L) over all sets.

    Drawn from its marginal kernel K = I − (I + L)⁻¹ item by item, without eigenvectors.

    Args:
        L: kernel (n, n), symmetric and positive semi-definite; eigenvalues that rounding has taken
            below zero, and those no larger than rounding beside them, count as zero.

    Raises:
        TypeError, ValueError: as `KDPP`.

    References:
        Kulesza and Taskar (2012), section 2; Poulson (2019), High-performance sampling of generic
        determinantal point processes, for the draw.
    """

    L: Any

    def __post_init__(self) -> None:
        rounding = rounding_of(self.L) if hasattr(self.L, "__len__") else 0.0
        kernel = check_kernel("L", self.L)
        if n := len(kernel):
            least, top = float(torch.linalg.eigvalsh(kernel)[0]), float(kernel.diagonal().max())
            _definite(least, top, rounding)
            if least < -n * _EPS:  # seen beside I: what rounding left of zeros must be zeros
                exact = spectrum(kernel, rounding).matrix(np.arange(n))
                kernel = torch.from_numpy(exact).to(kernel.device)
        object.__setattr__(self, "L", kernel)

    @cached_property
    def marginal_kernel(self) -> Float[Tensor, "n n"]:
        """K = I − (I + L)⁻¹ = (I + L)⁻¹L; det(K_A) is the probability that S contains A."""
        n = len(self.L)
        eye = torch.eye(n, dtype=torch.float64, device=self.L.device)
        factor, most = torch.linalg.cholesky(eye + self.L), float(self.L.diagonal().sum())
        if most <= 1:  # no eigenvalue is larger; the difference would lose the digits of a small L
            found = torch.cholesky_solve(self.L, factor)
            return (found + found.T) / 2
        found = eye - torch.cholesky_inverse(factor)
        single = found.diagonal()
        # λ/(1 + λ) is concave: rounding may not take a rare item's probability to zero or below.
        found += (self.L.diagonal() / (1 + most) - single).clamp_(min=0.0).diag()
        return found

    def sample(
        self, *, generator: Draws = None, size: int | None = None
    ) -> Int[Tensor, " items"] | list[Int[Tensor, " items"]]:
        """An exact draw, as ascending item indices; n³/3 multiply-adds after the first.

        Args:
            generator: a `torch.Generator` on the CPU, a seed, or None for torch's own.
            size: how many draws, as a list, since sets differ in size; None gives one set.
        """
        source = as_generator(generator)
        marginal = self.marginal_kernel.cpu().numpy()

        def one() -> Tensor:
            return torch.from_numpy(draw_marginal(marginal, source)).to(self.L.device)

        return one() if size is None else [one() for _ in range(whole("size", size, low=0))]

    def inclusion(self) -> Float[Tensor, " n"]:
        """P(i ∈ S) for every item; they sum to the expected size."""
        return self.marginal_kernel.diagonal().clone()

    def pair_inclusion(self) -> Float[Tensor, "n n"]:
        """P(i ∈ S and j ∈ S) = K_ii K_jj − K_ij², with K_ii on the diagonal."""
        marginal, single = self.marginal_kernel, self.inclusion()
        both = (torch.outer(single, single) - marginal.square()).clamp_(min=0.0)
        return both.fill_diagonal_(0.0) + single.diag()

    def log_prob(self, S: Iterable[int] | Tensor) -> float:
        """log P(S) = log det(L_S) − log det(I + L)."""
        items = _item_set(S, len(self.L))
        kernel = self.L.cpu().numpy()
        return _log_det(kernel[np.ix_(items, items)]) - _log_det(kernel + np.eye(len(kernel)))


def check_kernel(name: str, kernel: Any) -> Float[Tensor, "n n"]:
    """A finite, square, symmetric float64 kernel; the caller's array is never changed.

    Asymmetry up to 1e-8 of the largest entry is averaged out, or up to 16 units in the last place
    of the precision that the kernel came in.
    """
    matrix = float64(name, kernel)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`{name}` must be square, got shape {tuple(matrix.shape)}.")
    if matrix.numel() == 0:
        return matrix
    if torch.equal(matrix, matrix.T):
        return matrix
    skew = float((matrix - matrix.T).abs().max())
    if skew > max(1e-8, 16 * precision(kernel)) * float(matrix.abs().max()):
        raise ValueError(
            f"`{name}` must be symmetric, got entries that differ from their mirror image by "
            f"{skew:.3g}. Pass ({name} + {name}.T) / 2 if that is what you mean."
        )
    return (matrix + matrix.T) / 2


def spectrum(kernel: Float[Tensor, "n n"], rounding: float = 0.0) -> Spectrum:
    """Eigenvalues above rounding level with all eigenvectors, to relative accuracy where possible.

    `rounding` is what the entries' own precision leaves of a vanishing eigenvalue; see
    `arrays.rounding_of`.

    Divide and conquer (`syevd`): on the clustered spectra of these kernels several times faster
    than the `syevr` that SciPy takes by default.

    Raises:
        ValueError: not positive semi-definite, or nothing but zeros.
    """
    n = len(kernel)
    values, vectors = np.linalg.eigh(kernel.cpu().numpy())
    top = float(values[-1]) if n else 0.0
    _definite(float(values[0]) if n else 0.0, top, rounding)
    if top <= 0:
        raise ValueError(
            f"The kernel must have a positive eigenvalue, got {top:.3g} as the largest. A kernel "
            f"of zeros has no set of positive probability."
        )
    good = values > max(n * _EPS * top, rounding)
    if not good.all() and rounding == 0:
        graded = _graded_spectrum(kernel)
        if graded is not None:
            return graded
    return Spectrum(np.log(values[good]), vectors)


def _graded_spectrum(kernel: Tensor) -> Spectrum | None:
    """The spectrum of L = DAD to relative accuracy where A has full rank, else None.

    A is the kernel scaled to a unit diagonal; with its Cholesky factor T, L = (DT)(DT)ᵀ, and a
    one-sided Jacobi SVD of (DT)ᵀ finds small singular values as accurately as large ones.
    """
    matrix = kernel.cpu().numpy()
    diagonal = matrix.diagonal()
    if (diagonal <= 0).any():
        return None
    root = np.sqrt(diagonal)
    unit = matrix / root[:, None] / root
    n = len(unit)
    inner = np.linalg.eigvalsh(unit)
    if inner[0] <= n * _EPS * inner[-1]:
        return None
    factor = np.linalg.cholesky(unit) * root[:, None]
    # joba=0 ("C"): full relative accuracy for a well-conditioned matrix with graded columns.
    sva, _, v, work, _, fault = lapack.dgejsv(factor.T, joba=0, jobu=3, jobv=0, jobr=1, jobp=0)
    if fault != 0:
        return None
    singular = sva * (work[0] / work[1])
    order = np.argsort(singular)
    if singular[order[0]] <= 0:
        return None
    return Spectrum(2 * np.log(singular[order]), np.ascontiguousarray(v[:, order]))


def _definite(least: float, top: float, rounding: float = 0.0) -> None:
    if least < -max(1e-8 * top, rounding, 0.0):
        raise ValueError(
            f"The kernel is not positive semi-definite: eigenvalue {least:.3g} beside the largest "
            f"{top:.3g}. Build it in float64 from a Gram matrix, or add a jitter to its diagonal."
        )


def _log_det(matrix: np.ndarray) -> float:
    """log det of a positive semi-definite matrix, −∞ where it is singular to rounding.

    Judged on the matrix scaled to a unit diagonal, so that no choice of units makes it singular;
    its squared pivots are what each item adds that the ones before lack, 0 for a duplicate.
    """
    n = len(matrix)
    if n == 0:
        return 0.0
    scale = matrix.diagonal()
    if (scale <= 0).any():
        return -math.inf
    root = np.sqrt(scale)
    factor, fault = lapack.dpotrf((matrix / root[:, None] / root).T, lower=1)
    if fault or float(factor.diagonal().min()) ** 2 <= n * _EPS:
        return -math.inf
    return float(2 * np.log(factor.diagonal()).sum() + np.log(scale).sum())


def _item_set(items: Iterable[int] | Tensor, n: int) -> np.ndarray:
    """Distinct item indices in 0..n−1 as an array."""
    given = items.tolist() if isinstance(items, Tensor) else list(items)
    checked = [whole("S", int(i), low=0, high=n - 1) for i in given]
    if len(set(checked)) != len(checked):
        raise ValueError(f"`S` must be a set of items, got an index twice in {checked}.")
    return np.asarray(sorted(checked), dtype=np.int64)
