"""Kernels of determinantal point processes: what is one, its eigenvalues, its determinants."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import whole
from prunus.dpp.arrays import float64, precision
from prunus.later import Later

__all__ = [
    "EPS",
    "Spectrum",
    "check_definite",
    "check_kernel",
    "item_set",
    "log_det",
    "spectrum",
]

lapack = Later("scipy.linalg.lapack")

EPS = float(np.finfo(np.float64).eps)


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
    check_definite(float(values[0]) if n else 0.0, top, rounding)
    if top <= 0:
        raise ValueError(
            f"The kernel must have a positive eigenvalue, got {top:.3g} as the largest. A kernel "
            f"of zeros has no set of positive probability."
        )
    good = values > max(n * EPS * top, rounding)
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
    if inner[0] <= n * EPS * inner[-1]:
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


def check_definite(least: float, top: float, rounding: float = 0.0) -> None:
    """Raise a ValueError where a kernel's least eigenvalue is below zero by more than rounding."""
    if least < -max(1e-8 * top, rounding, 0.0):
        raise ValueError(
            f"The kernel is not positive semi-definite: eigenvalue {least:.3g} beside the largest "
            f"{top:.3g}. Build it in float64 from a Gram matrix, or add a jitter to its diagonal."
        )


def log_det(matrix: np.ndarray) -> float:
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
    if fault or float(factor.diagonal().min()) ** 2 <= n * EPS:
        return -math.inf
    return float(2 * np.log(factor.diagonal()).sum() + np.log(scale).sum())


def item_set(items: Iterable[int] | Tensor, n: int) -> np.ndarray:
    """Distinct item indices in 0..n−1 as an array."""
    if not isinstance(items, Iterable) or isinstance(items, str):
        raise TypeError(f"`S` must be a set of item indices, got {items!r}.")
    given = items.tolist() if isinstance(items, Tensor) else items
    checked = [whole("S", i, low=0, high=n - 1) for i in given]
    if len(set(checked)) != len(checked):
        raise ValueError(f"`S` must be a set of items, got an index twice in {checked}.")
    return np.asarray(sorted(checked), dtype=np.int64)
