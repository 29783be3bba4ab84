"""Least squares for many inputs: conjugate gradients over all rows, to a bound of the error.

With A = G + λI, P = A⁻¹ and b the right-hand side, the rows δ with δ_R = 0 that minimise
δ A δᵀ − 2 b δᵀ are δ = bP + qP where q lives on the removed weights R and solves P_RR q = −(bP)_R:
the multi-weight OBS step. Second moments of real inputs have inverses that are all but diagonal, so
a handful of steps on P_RR, scaled to a unit diagonal, do what a factorisation per row does with k³.
Where they do not, steps on A_SS follow, preconditioned with P_SS.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.compensation.descent import System, descend

__all__ = ["Conjugate", "NotDefinite", "conjugate_gradients", "costs_less"]

ROUNDING = 1e-12  # of a row's output power: excess below this is rounding and not asked for
ROUNDS = 6  # of steps in low precision, with a look in double precision after each
LATER_STEPS = 100  # on the kept weights, for rows that the removed ones did not serve
PRODUCTS = 30  # products with A or P that "auto" reckons with
ENTRIES = 2**20  # of a block of rows that is worked on at once


class NotDefinite(ValueError):
    """A could not be factorised with the ridge given."""


@dataclass(frozen=True, eq=False)
class Conjugate:
    """What the steps reached.

    Attributes:
        change: δ, zero where the mask is False.
        bound: of J(δ) − min J, squared output units; J is the layer error plus λ‖δ‖².
        reached: J(δ).
        met: rows whose bound is as small as was asked for.
        products: with an in × in matrix, the largest number over the blocks of rows.
    """

    change: Float[Tensor, "out in"]
    bound: Float[Tensor, " out"]
    reached: Float[Tensor, " out"]
    met: Bool[Tensor, " out"]
    products: int


def costs_less(rows: int, n: int, exact: float) -> bool:
    """True where conjugate gradients take less than half of `exact` multiply-adds.

    P costs n³, each product rows · n², and 30 are reckoned with. With half of the weights kept and
    as many rows as inputs, that is so from about 1500 inputs on.
    """
    return 2 * (n**3 + PRODUCTS * rows * n**2) < exact


def conjugate_gradients(
    gram: Float[Tensor, "in in"],
    target: Float[Tensor, "out in"],
    mask: Bool[Tensor, "out in"],
    before: Float[Tensor, " out"],
    power: Float[Tensor, " out"],
    *,
    damping: float,
    rtol: float,
    lost: Float[Tensor, "out in"] | None = None,
) -> Conjugate:
    """δ of every row with J(δ) ≤ (1 + rtol) min J by a bound that is computed beside it.

    For ρ = −(bP + qP)_R, what the removed weights still emit, δ = (bP + qP)_S leaves
    (b − δA)_S = −(ρA)_S, so that J(δ) − min J = ‖δ − δ*‖²_A ≤ ρ A ρᵀ: one product, and the length
    of a vector that is known. Steps on the kept weights are bounded by Gauss–Radau quadrature with
    the node 1, below which P_SS A_SS has no eigenvalue.

    Steps on the removed weights (`descend`) take half or single precision; the residual and J of
    the δ that comes out are double, and what the lower precision leaves in it is part of the bound.

    Args:
        gram: G, float64.
        target: b of every row over all inputs, float64.
        mask: True where a weight is kept.
        before: J(0) of each row.
        power: E‖w x‖² of each row; bounds below 1e-12 of it are as good as 0.
        damping: λ > 0.
        rtol: of min J, over the rows of a block together.
        lost: bP where it is known: what a row loses, as b = lost · A.

    Returns:
        the rows, with J never above `before`; those not `met` were given up.

    Raises:
        NotDefinite: A has no Cholesky factor.

    References:
        Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems;
        Golub and Meurant (1994), Matrices, moments and quadrature; Meurant and Tichý (2013), On
        computing quadrature-based bounds for the A-norm of the error in conjugate gradients, for
        the recurrence of the Radau coefficient.
    """
    n = len(gram)
    unit = float(gram.diagonal().mean())  # single precision is at home around 1
    damping, before, power = damping / unit, before / unit, power / unit
    matrix, target = gram / unit, target / unit
    matrix.diagonal().add_(damping)
    system = System.of(matrix, damping)
    if system is None:
        raise NotDefinite(f"no factor with damping {damping:.3g}")
    change = torch.zeros_like(target)
    bound, reached = torch.zeros_like(before), before.clone()
    met = torch.ones_like(before, dtype=torch.bool)
    products = 0
    alive = (mask.any(1) & ((before > 0) | (target != 0).any(1))).nonzero().flatten()
    for rows in torch.split(alive, max(64, ENTRIES // max(n, 1))):
        block = _Block(
            system=system,
            target=target[rows],
            inside=mask[rows].to(target.dtype),
            before=before[rows],
            floor=ROUNDING * power[rows],
            rtol=rtol,
        )
        block.on_removed(None if lost is None else lost[rows])
        if not bool(block.met.all()):
            block.on_kept()
        change[rows], bound[rows], reached[rows] = block.change, block.bound, block.level
        met[rows] = block.met
        products = max(products, block.products)
    return Conjugate(
        change=change, bound=bound * unit, reached=reached * unit, met=met, products=products
    )


class _Block:
    """Rows that are solved together."""

    def __init__(
        self,
        *,
        system: System,
        target: Tensor,
        inside: Tensor,
        before: Tensor,
        floor: Tensor,
        rtol: float,
    ) -> None:
        self.system, self.target, self.inside = system, target * inside, inside
        self.whole, self.before, self.floor, self.rtol = target, before, floor, rtol
        self.change = torch.zeros_like(target)
        self.residual = self.target
        self.bound = torch.full_like(before, torch.inf)
        self.least = torch.zeros_like(before)
        self.level = before
        self.products = 0

    @property
    def met(self) -> Tensor:
        """Rows that need nothing more: all of them where their sum is as good as asked for."""
        rows = self.bound <= self.rtol * self.least.clamp_min(0) + self.floor
        allowed = self.rtol * self.least.clamp_min(0).sum() + self.floor.sum()
        return rows | (self.bound.sum() <= allowed)

    def _take(self, change: Tensor, residual: Tensor, bound: Tensor) -> None:
        """Rows that lie lower than what was had before, with their bounds; else the bound alone."""
        level = self.before - (change * (self.target + residual)).sum(1)
        least = torch.maximum(self.least, level - bound)
        better = level <= self.level
        self.level = torch.where(better, level, self.level)
        self.change = torch.where(better[:, None], change, self.change)
        self.residual = torch.where(better[:, None], residual, self.residual)
        self.least = torch.minimum(least, self.level)
        self.bound = self.level - self.least

    def on_removed(self, lost: Tensor | None) -> None:
        """Steps on P_RR q = −(bP)_R until the bound is met or no longer falls by four a round."""
        a, p, scale = self.system.matrix, self.system.inverse, self.system.scale
        if lost is None:
            lost = self.whole @ p
            self.products += 1
        removed = 1 - self.inside
        # What the dual has in hand at q = 0: the value of J for the best weights on all inputs.
        dual = self.before - (self.whole * lost).sum(1)
        rest, multiplier, value = -lost * removed, torch.zeros_like(lost), dual
        last = torch.inf
        for turn in range(ROUNDS):
            found = descend(self.system, rest, removed, value, self.floor, self.rtol)
            self.products += found.products
            multiplier = multiplier + found.x.to(lost.dtype) * scale
            # A first δ in single precision serves: what that leaves in it is part of the bound.
            whole = lost + (multiplier @ p if turn else found.product.to(lost.dtype) / scale)
            rest, kept = -whole * removed, whole * self.inside
            residual = (self.target - kept @ a) * self.inside
            self.products += 2
            pushed = None if turn else found.pushed
            self._take(kept, residual, self._leftover(rest, residual, pushed, exact=turn > 0))
            reached = float(self.bound.sum())
            if bool(self.met.all()) or not reached < last / 4:
                return
            last = reached
            value = dual + (multiplier * (rest - lost * removed)).sum(1)

    def _leftover(
        self, rest: Tensor, residual: Tensor, pushed: Tensor | None, *, exact: bool
    ) -> Tensor:
        """‖c‖²_A of a c with (Ac)_S the residual: ρ, and P_SS times what rounding left.

        Where the product ρA is not `exact`, what an entry of it is off by on S is known, and
        allowed for on R, which has more entries where more are removed than kept.
        """
        system = self.system
        if exact:
            pushed = rest @ system.matrix
        elif pushed is None:
            pushed = rest.to(torch.float32) @ system.single
        pushed = pushed.to(rest.dtype)
        stray = (residual + pushed) * self.inside
        bound = (pushed * rest).sum(1).clamp_min(0)
        self.products += 1
        if not exact:
            kept = self.inside.sum(1)
            entries = ((len(system.scale) - kept) / kept.clamp_min(1)).clamp_min(1)
            bound = bound + rest.norm(dim=1) * stray.norm(dim=1) * entries.sqrt()
        size = stray.square().sum(1) / system.damping
        if bool((size > 1e-2 * bound + self.floor).any()):
            size = torch.minimum(size, self._by_inverse(stray, exact=exact))
        return (bound.sqrt() + size.sqrt()).square()

    def _by_inverse(self, stray: Tensor, *, exact: bool) -> Tensor:
        """s P sᵀ of every row; or, where that serves, somewhat more by a faster product."""
        self.products += 1
        if exact:
            return ((stray @ self.system.inverse) * stray).sum(1).clamp_min(0)
        return self.system.by_inverse(stray)

    def on_kept(self) -> None:
        """Steps on A_SS δ = b_S with P_SS before it, for the rows that are not met."""
        rows = (~self.met).nonzero().flatten()
        a, p = self.system.matrix, self.system.inverse
        inside, before = self.inside[rows], self.before[rows]
        x, r = self.change[rows], self.residual[rows]
        target, floor = self.target[rows], self.floor[rows]
        z = (r @ p) * inside
        d, rz = z, (r * z).sum(1)
        gamma = torch.ones_like(rz)
        zero = torch.zeros_like(rz)
        for _ in range(LATER_STEPS):
            q = (d @ a) * inside
            along = (d * q).sum(1)
            alpha = torch.where(along > 0, rz / along, zero)
            x = x + alpha[:, None] * d
            r = r - alpha[:, None] * q
            z = (r @ p) * inside
            self.products += 2
            new = (r * z).sum(1).clamp_min(0)
            beta = torch.where(rz > 0, new / rz, zero)
            ahead = (gamma - alpha).clamp_min(0)
            gamma = torch.where(ahead > 0, ahead / (ahead + beta), torch.ones_like(gamma))
            d, rz = z + beta[:, None] * d, new
            bound = gamma * rz
            level = before - (x * (target + r)).sum(1)
            least = (level - bound).clamp_min(0)
            enough = self.rtol * least + floor
            if bool((bound <= enough).all()) or bool(bound.sum() <= enough.sum()):
                break
        residual = (target - x @ a) * inside
        self.products += 1
        drift = residual - r
        slip = drift.square().sum(1) / self.system.damping
        if bool((slip > 1e-2 * bound + floor).any()):
            slip = torch.minimum(slip, ((drift @ p) * drift).sum(1).clamp_min(0))
            self.products += 1
        everything = self.change.clone(), self.residual.clone()
        everything[0][rows], everything[1][rows] = x, residual
        wide = torch.zeros_like(self.bound)
        wide[rows] = (bound.clamp_min(0).sqrt() + slip.sqrt()).square()
        keep = torch.ones_like(self.met)
        keep[rows] = False
        wide[keep] = self.bound[keep]
        self._take(*everything, wide)
