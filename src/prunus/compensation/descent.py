"""Conjugate gradients on the removed weights of many rows at once, in low precision.

With A = G + λI and P = A⁻¹ scaled to a unit diagonal, U, each row solves U_RR x = r on what it
removes. A step is one product of all rows with U. Processors that multiply bfloat16 do that
several times as fast as float32, and the steps stand it: what rounding leaves points at random,
where A is small, and now and then the residual is computed anew in single precision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["System", "descend", "multiplies_half"]

STEPS = 120  # at most, between two looks in double precision
PACE = 10  # of these, in which the rest must fall to a quarter
RENEWED = 4e-4  # of its squared length at the last renewal: the residual's in half precision
SAMPLE = 8  # every so many-th row tells whether a look at ρ A ρᵀ of all rows is worth it
FEWEST = 32  # such rows, where the block has them
TINY = 1e-30  # a length that no residual of float32 has
MARGIN = 0.95  # of the bound allowed: where steps end


def multiplies_half() -> bool:
    """Whether this processor has instructions for products of bfloat16."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return asked is not None and bool(asked()) and bool(torch._C._has_mkldnn)


@dataclass(frozen=True, eq=False)
class System:
    """A and its inverse, in double precision and as the steps use them.

    Attributes:
        matrix: A, float64, with a mean diagonal of about 1.
        inverse: P, float64.
        damping: λ in the units of A.
        scale: diag(P)^-½.
        unit: U, float32.
        half: U, bfloat16, where steps take it.
        single: A, float32.
        spread: largest sum of |U| along a row, which is at least the norm of |U|.
    """

    matrix: Tensor
    inverse: Tensor
    damping: float
    scale: Tensor
    unit: Tensor
    half: Tensor | None
    single: Tensor
    spread: float

    @classmethod
    def of(cls, matrix: Tensor, damping: float) -> "System | None":
        """The system of A; None where A has no Cholesky factor."""
        factor, fault = torch.linalg.cholesky_ex(matrix)
        if int(fault) != 0:
            return None
        inverse = torch.cholesky_inverse(factor)
        del factor
        scale = inverse.diagonal().rsqrt()
        unit = (inverse * scale[:, None]).mul_(scale).to(torch.float32)
        half = unit.to(torch.bfloat16) if not matrix.is_cuda and multiplies_half() else None
        single = matrix.to(torch.float32)
        spread = float(unit.abs().sum(1).max())
        return cls(matrix, inverse, damping, scale, unit, half, single, spread)

    def by_inverse(self, rows: Tensor) -> Tensor:
        """s P sᵀ of every row s, or more by what a product in low precision can err.

        |ŝÛs − sUs| is at most the relative error of one term times |s||U||s|, and that is at most
        `spread` times ‖s‖². A term errs by the rounding of s, of U and of the product to bfloat16,
        of 8 bits each, and by a sum of n terms in float32.
        """
        s = (rows / self.scale).to(torch.float32)
        share = s.shape[1] * 2.0**-24
        if self.half is None:
            size = ((s @ self.unit) * s).sum(1)
        else:
            size = ((s.to(torch.bfloat16) @ self.half.T) * s).sum(1)
            share += 3 * 2.0**-9
        size = size + 2 * share * self.spread * s.square().sum(1)
        return size.clamp_min(0).to(rows.dtype)


@dataclass(frozen=True, eq=False)
class Descent:
    """Where the steps ended.

    Attributes:
        x: float32, zero outside R; the multiplier in units of `scale`.
        product: xU, float32.
        pushed: ρA where steps ended with it as small as asked for, float32.
        products: with U or A, in single precision and half.
    """

    x: Tensor
    product: Tensor
    pushed: Tensor | None
    products: int


def descend(
    system: System, rest: Tensor, removed: Tensor, value: Tensor, floor: Tensor, rtol: float
) -> Descent:
    """x with U_RR x = rest · scale, until ρ A ρᵀ of what is left is as small as asked for.

    Args:
        system: A, P and U.
        rest: ρ at x = 0, float64, zero outside R.
        removed: 1 on R, else 0.
        value: a lower bound of min J at x = 0, of each row.
        floor: excess of each row that is rounding.
        rtol: of min J, over all rows together.

    References:
        Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems;
        van der Vorst and Ye (2000), Residual replacement strategies for Krylov subspace iterative
        methods for the convergence of true residuals, for keeping the direction at a renewal.
    """
    outside = removed.to(torch.float32)
    begun = (rest * system.scale).to(torch.float32)
    back = system.scale.reciprocal().to(torch.float32)
    some = slice(None, None, max(1, min(SAMPLE, len(begun) // FEWEST)))
    x, r, d = torch.zeros_like(begun), begun.clone(), begun.clone()
    q, work = torch.empty_like(r), torch.empty_like(r)
    product: Tensor | None = None
    pushed: Tensor | None = None
    rr = _squared(r)
    length = renewed = float(rr.sum())
    count, ratio, seen = 0, 0.0, torch.inf

    def small(rows: slice) -> Tensor | None:
        """ρA of some rows where ρ A ρᵀ is as small as asked for, as told by these."""
        nonlocal count, ratio
        allowed = MARGIN * float((rtol * value.clamp_min(0) + floor).sum())
        if ratio * length > allowed:
            return None
        rho = r[rows] * back
        pushed = rho @ system.single
        count += 1
        ratio = float((pushed * rho).sum()) / max(float(rr[rows].sum()), TINY)
        return pushed if ratio * length <= allowed else None

    for turn in range(STEPS):
        if system.half is None:
            torch.mm(d, system.unit, out=q).mul_(outside)
        else:
            torch.mul(d.to(torch.bfloat16) @ system.half.T, outside, out=q)
        product = None
        count += 1
        along = torch.mul(d, q, out=work).sum(1)
        step = torch.where(along > 0, rr / along, torch.zeros_like(rr))
        x.addcmul_(step[:, None], d)
        r.addcmul_(step[:, None], q, value=-1)
        value = value + (step * rr).to(value.dtype)
        before, rr = rr, _squared(r)
        length = float(rr.sum())
        near = small(some) is not None
        if near or (system.half is not None and length <= RENEWED * renewed):
            product = x @ system.unit
            torch.sub(begun, product, out=r).mul_(outside)
            rr = _squared(r)
            count, length = count + 1, float(rr.sum())
            renewed = length
            pushed = small(slice(None)) if near else None
            if pushed is not None:
                break
        if turn % PACE == PACE - 1:
            if not length < seen / 4:
                break
            seen = length
        turned = torch.where(before > 0, rr / before, torch.zeros_like(rr))
        torch.addcmul(r, turned[:, None], d, out=d)
    return Descent(x, x @ system.unit if product is None else product, pushed, count)


def _squared(r: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(r, dim=1).square()
    return found
