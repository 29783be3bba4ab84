"""Exact determinantal point processes of random size."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.check import whole
from prunus.dpp.arrays import rounding_of
from prunus.dpp.sequential import draw_marginal
from prunus.dpp.spectrum import EPS, check_definite, check_kernel, item_set, log_det, spectrum
from prunus.rng import Draws, as_generator

__all__ = ["DPP"]


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
            check_definite(least, top, rounding)
            if least < -n * EPS:  # seen beside I: what rounding left of zeros must be zeros
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
        items = item_set(S, len(self.L))
        kernel = self.L.cpu().numpy()
        return log_det(kernel[np.ix_(items, items)]) - log_det(kernel + np.eye(len(kernel)))
