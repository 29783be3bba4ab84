"""New values for the kept weights that make up best for the removed ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.check import finite, positive, unknown
from prunus.compensation.conjugate import NotDefinite, conjugate_gradients, costs_less
from prunus.compensation.exact import RIDGE_LIMIT, cost_of, solve_exactly

__all__ = ["SOLVERS", "LeastSquaresFit", "least_squares"]

SOLVERS = ("auto", "cholesky", "cg", "pinv")


@dataclass(frozen=True, eq=False, kw_only=True)
class LeastSquaresFit:
    """Weights that minimise E‖(W − W′)x‖² among those that vanish outside a mask.

    Attributes:
        weight: W′, exactly zero outside the mask, in the dtype of the given weights.
        bias: the bias, with the mean of what was lost folded in where an intercept was asked.
        ridge: relative ridge used in each row, larger than asked where a factorisation failed.
        rank: numerical rank of each row's kept Gram block; None unless by "pinv".
        before: E‖(w − m ∘ w)x‖² of each row, squared output units.
        after: E‖(w − w′)x‖² of each row, squared output units.
        excess: bound of J − min J of each row, where J is `after` plus λ‖w′_S − w_S‖², squared
            output units; 0 for rows that were factorised.
        solver: "cholesky", "cg" or "pinv"; what "auto" chose.
    """

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None
    ridge: Float[Tensor, " out"]
    rank: Int[Tensor, " out"] | None
    before: Float[Tensor, " out"]
    after: Float[Tensor, " out"]
    excess: Float[Tensor, " out"]
    solver: str


def least_squares(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    mask: Bool[Tensor, "out in"],
    *,
    ridge: float = 1e-8,
    solver: str = "auto",
    rtol: float = 1e-3,
    mean: Float[Tensor, " in"] | None = None,
    bias: Float[Tensor, " out"] | None = None,
    intercept: bool = False,
    cross: Float[Tensor, "in in"] | None = None,
    dense_gram: Float[Tensor, "in in"] | None = None,
    dense_mean: Float[Tensor, " in"] | None = None,
) -> LeastSquaresFit:
    """Refit the kept weights of every row to the outputs of the whole row.

    Row by row, with S kept and R removed, w′_S = w_S + δ and w′_R = 0 where

        (G_SS + λI) δ = G_SR w_R,    λ = ridge · trace(G) / n.

    For ridge → 0 this is the optimum for the mask; for any ridge it is the multi-weight OBS update
    with damping λ, and the objective never exceeds that of δ = 0. Rows with one mask in common (all
    rows, when nodes are pruned) share one factorisation. A factorisation that fails is tried again
    with ten times the ridge, up to 1e-4; `ridge` of the result says so.

    Where the inputs x come from an already pruned model, `cross` C = E[x_dense xᵀ] aims at the
    dense outputs: the right-hand side becomes (w C − (m ∘ w) G)_S, and errors are E‖w x_dense −
    w′ x‖².

    Args:
        weight: weights W of the layer.
        gram: second moment G = E[x xᵀ] of the layer's inputs.
        mask: True where a weight is kept.
        ridge: λ relative to the mean of G's diagonal; > 0, but not used by "pinv".
        solver: "cholesky" factorises each row's kept block, k³/3 multiply-adds each; "cg" takes
            conjugate gradients over all rows at once, some ten products out × in × in, until the
            error is within `rtol` of the least; "auto" is "cg" where that takes less than half of
            the multiply-adds, from about 1500 inputs on with half of them kept, else "cholesky";
            "pinv" gives the minimum-norm δ without a ridge (eigenvalues below n · 2.2e-16 of the
            largest are cut; six to ten times slower).
        rtol: for "cg", of the least J = E‖(w − w′)x‖² + λ‖δ‖², summed over rows; a computed bound
            of the excess meets it, down to 1e-12 of E‖wx‖². Rows that do not get there are
            factorised. No row ends above its J for δ = 0.
        mean: E[x], needed for an intercept.
        bias: the layer's bias, needed for an intercept; otherwise returned as it came.
        intercept: fit the bias too: G is centred and the bias becomes b + (w − w′)·E[x].
        cross: E[x_dense xᵀ], with `dense_gram` (and `dense_mean` for an intercept).
        dense_gram: E[x_dense x_denseᵀ], for the errors.
        dense_mean: E[x_dense].

    Returns:
        the fit; the arithmetic is float64, the weights return in the dtype of `weight`.

    Raises:
        ValueError: shapes that do not fit, NaN or infinities, a ridge that is not positive, an
            unknown solver, an `rtol` that is not positive, an intercept without `mean` or `bias`,
            a `gram` that is no second moment, or a block that cannot be factorised even with ridge
            1e-4.

    References:
        Hassibi and Stork (1993), Second order derivatives for network pruning: optimal brain
        surgeon, for one weight; Acharyya et al. (2021), Statistical mechanical analysis of neural
        network pruning, for the reweighting of a random mask.
    """
    if gram.shape[0] != weight.shape[1] or mask.shape != weight.shape:
        raise ValueError(
            f"`gram` and `mask` must fit `weight` of shape {tuple(weight.shape)}, got "
            f"{tuple(gram.shape)} and {tuple(mask.shape)}. Take all three from one layer."
        )
    if solver not in SOLVERS:
        raise unknown("solver", solver, list(SOLVERS))
    positive("rtol", rtol)
    if solver != "pinv":
        ridge = positive("ridge", ridge)
    finite("weight", weight)
    finite("gram", gram)
    if intercept and (mean is None or bias is None):
        missing = "mean" if mean is None else "bias"
        raise ValueError(
            f"An intercept needs `mean` and `bias`, got no `{missing}`. Calibrate the mean, or "
            f"pass intercept=False."
        )
    w, g = weight.to(torch.float64), gram.to(torch.float64)
    if bool((g.diagonal() < 0).any()):
        worst = int(g.diagonal().argmin())
        raise ValueError(
            f"`gram` must be a second moment, with diagonal >= 0, got {g[worst, worst].item():.3g} "
            f"at input {worst}. Collect it from finite inputs."
        )
    aims_at_dense = cross is not None
    c = g if cross is None else finite("cross", cross).to(torch.float64)
    g_dense = g if dense_gram is None else finite("dense_gram", dense_gram).to(torch.float64)
    if aims_at_dense and dense_gram is None:
        raise ValueError("`cross` needs `dense_gram` beside it. Collect both in one pass.")
    if intercept and mean is not None:
        mu = finite("mean", mean).to(torch.float64)
        mu_dense = mu
        if aims_at_dense:
            if dense_mean is None:
                raise ValueError("An intercept with `cross` needs `dense_mean`. Collect it too.")
            mu_dense = finite("dense_mean", dense_mean).to(torch.float64)
        g = g - torch.outer(mu, mu)
        c = c - torch.outer(mu_dense, mu)
        g_dense = g_dense - torch.outer(mu_dense, mu_dense)
    masked = w.masked_fill(~mask, 0.0)
    lost = w - masked

    def error(weights: Tensor) -> Tensor:
        if not aims_at_dense:
            rest = w - weights
            return ((rest @ g) * rest).sum(1).clamp_min(0)
        parts = ((w @ g_dense) * w) - 2 * ((w @ c) * weights) + ((weights @ g) * weights)
        return parts.sum(1).clamp_min(0)

    if aims_at_dense:
        target, before = w @ c - masked @ g, error(masked)
    else:
        target = lost @ g  # every right-hand side G_SR w_R in one product
        before = (target * lost).sum(1).clamp_min(0)
    found = _solved(
        g,
        target,
        mask,
        ridge,
        solver,
        rtol,
        lost=None if aims_at_dense else lost,
        before=before,
        power=w.square() @ g_dense.diagonal(),
    )
    fitted = (w + found.change).masked_fill(~mask, 0.0)
    out_bias = bias
    if intercept and mean is not None and bias is not None:
        gone = w @ mu_dense - fitted @ mu
        out_bias = (bias.to(torch.float64) + gone).to(bias.dtype)
    return LeastSquaresFit(
        weight=fitted.to(weight.dtype),
        bias=out_bias,
        ridge=found.ridge,
        rank=found.rank,
        before=before,
        after=error(fitted) if found.after is None else found.after,
        excess=found.excess,
        solver=found.solver,
    )


@dataclass(frozen=True, eq=False)
class _Solved:
    """δ, how it was found, and where it is known on the way, the layer error after it."""

    change: Tensor
    ridge: Tensor
    rank: Tensor | None
    excess: Tensor
    solver: str
    after: Tensor | None = None


def _solved(
    g: Tensor,
    target: Tensor,
    mask: Tensor,
    ridge: float,
    solver: str,
    rtol: float,
    *,
    lost: Tensor | None,
    before: Tensor,
    power: Tensor,
) -> _Solved:
    """By the solver asked for; rows that conjugate gradients do not serve are factorised."""
    full_rows = lost is None
    scale = float(g.diagonal().mean()) if len(g) else 0.0
    asked = solver
    if solver == "auto":
        many = costs_less(len(mask), len(g), cost_of(mask, full_rows=full_rows))
        solver = "cg" if many else "cholesky"
    if solver != "cg" or scale == 0.0:
        change, ridges, ranks = solve_exactly(
            g, target, mask, None if solver == "pinv" else ridge, full_rows=full_rows
        )
        return _Solved(change, ridges, ranks, torch.zeros_like(before), solver)
    used = ridge
    while True:
        try:
            found = conjugate_gradients(
                g, target, mask, before, power, damping=used * scale, rtol=rtol, lost=lost
            )
            break
        except NotDefinite:
            if asked == "auto":  # a row's own block may well have a factor
                return _solved(
                    g, target, mask, ridge, "cholesky", rtol, lost=lost, before=before, power=power
                )
            if used * 10 > RIDGE_LIMIT * (1 + 1e-9):
                raise ValueError(
                    f"`gram` is not positive definite even with ridge {used:.0e}. Collect it in "
                    f"float64, or pass a larger ridge."
                ) from None
            used *= 10
    change, excess = found.change, found.bound
    ridges = torch.full((len(mask),), used, dtype=torch.float64)
    left = (~found.met).nonzero().flatten()
    if len(left):
        own, those, _ = solve_exactly(g, target[left], mask[left], used, full_rows=full_rows)
        change[left], ridges[left.cpu()], excess[left] = own, those, 0.0
        return _Solved(change, ridges, None, excess, "cg")
    after = (found.reached - used * scale * change.square().sum(1)).clamp_min(0)
    return _Solved(change, ridges, None, excess, "cg", after)
