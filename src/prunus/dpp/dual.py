"""k-DPPs of low-rank kernels from their features: n may be large, no n × n matrix is formed."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from prunus.check import whole
from prunus.dpp import tilt
from prunus.dpp.arrays import float64
from prunus.dpp.projection import draw_projection
from prunus.rng import Draws, as_generator, drawn

__all__ = ["DualKDPP", "fourier_features"]


@dataclass(frozen=True, eq=False)
class DualKDPP:
    """The k-DPP of L = B Bᵀ for features B (n, r), k ≤ rank ≤ r.

    The r × r matrix C = BᵀB has the positive eigenvalues of L, and with its eigenvectors U those
    of L are V = B U λ^(−1/2). O(n r²) once, then O(n k²) a draw or less.

    Args:
        features: B, one row per item.

    Raises:
        ValueError: features that are not finite, or all zero.

    Example:
        >>> import torch
        >>> dual = DualKDPP(torch.randn(50, 4))
        >>> dual.rank
        4

    References:
        Kulesza and Taskar (2012), Determinantal point processes for machine learning, section 3.3.
    """

    features: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", float64("features", self.features, dims=2))

    @cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        b = self.features.cpu().numpy()
        values, inner = np.linalg.eigh(b.T @ b)
        top = float(values[-1]) if len(values) else 0.0
        if top <= 0:
            raise ValueError("`features` must not all be zero. Scale them, or drop the draw.")
        good = values > max(b.shape) * np.finfo(np.float64).eps * top
        vectors = (b @ inner[:, good]) / np.sqrt(values[good])
        # Small eigenvalues leave V orthonormal only to ε·λ₁/λ; one Cholesky step mends that.
        factor = np.linalg.cholesky(vectors.T @ vectors)
        return np.log(values[good]), np.linalg.solve(factor, vectors.T).T

    @property
    def rank(self) -> int:
        """The largest k that has sets of positive probability."""
        return len(self._parts[0])

    def sample(
        self, k: int, *, generator: Draws = None, size: int | None = None
    ) -> Int[Tensor, "*size k"]:
        """An exact draw, or several, as ascending item indices.

        Args:
            k: size of the set, 0 ≤ k ≤ rank.
            generator: a `torch.Generator` on the CPU, a seed, or None for torch's own.
            size: how many draws, one after another; None gives one set, without that axis.

        Raises:
            ValueError: k is no whole number in 0..rank.
        """
        k = whole("k", k, low=0, high=min(self.features.shape))
        return drawn(lambda source: self._draw(k, source), k, generator, size)

    def _draw(self, k: int, generator: Generator) -> Int[Tensor, " k"]:
        device = self.features.device
        if k == 0:
            return torch.empty(0, dtype=torch.int64, device=device)
        logs, vectors = self._checked(k)
        chosen = np.arange(len(logs))
        if k < len(logs):
            p, _ = tilt.coins(logs, tilt.tilt(logs, k))
            chosen, _ = tilt.draw_by_rejection(p, k, generator)
        return torch.from_numpy(draw_projection(vectors, chosen, generator)).to(device)

    def inclusion(self, k: int) -> Float[Tensor, " n"]:
        """P(i ∈ S) for every item; they sum to k."""
        k = whole("k", k, low=0, high=min(self.features.shape))
        if k == 0:
            return torch.zeros(len(self.features), dtype=torch.float64)
        logs, vectors = self._checked(k)
        return torch.from_numpy(vectors**2 @ tilt.single_probabilities(logs, k))

    def log_normaliser(self, k: int) -> float:
        """log e_k(λ)."""
        k = whole("k", k, low=0, high=min(self.features.shape))
        return 0.0 if k == 0 else tilt.log_elementary(self._checked(k)[0], k)

    def _checked(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k > self.rank:
            raise ValueError(
                f"k={k} exceeds numerical rank {self.rank} of the features. Lower k, or use KDPP "
                f"with a jitter."
            )
        return self._parts


def fourier_features(
    features: Any, count: int, *, bandwidth: float, generator: Draws = None
) -> Float[Tensor, "n count"]:
    """Random features whose inner products approximate exp(−β‖a_i − a_j‖²), for `DualKDPP`.

    √(2/count) cos(Aω + φ) with ω ~ N(0, 2βI) and φ uniform; entries are off by about 1/√count.

    Args:
        features: item vectors A (n, dimensions).
        count: number of random features.
        bandwidth: β.
        generator: a `torch.Generator` on the CPU, a seed, or None for torch's own.

    References:
        Rahimi and Recht (2007), Random features for large-scale kernel machines.
    """
    a = float64("features", features, dims=2)
    count = whole("count", count, low=1)
    shape, source = (a.shape[1], count), as_generator(generator)
    waves = torch.randn(shape, dtype=torch.float64, generator=source) * (2 * bandwidth) ** 0.5
    phases = torch.rand(count, dtype=torch.float64, generator=source) * (2 * torch.pi)
    features_: Tensor = torch.cos(a @ waves.to(a.device) + phases.to(a.device))
    return features_ * math.sqrt(2 / count)
