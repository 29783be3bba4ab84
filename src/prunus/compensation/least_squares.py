"""New values for the kept weights that make up best for the removed ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.linalg import lapack
from torch import Tensor

from prunus.check import finite, positive, unknown
from prunus.compensation.complement import pays, solve_by_removed

__all__ = ["LeastSquaresFit", "least_squares"]

RIDGE_LIMIT = 1e-4  # escalation after a failed factorisation stops here
_BATCH_BYTES = 2**30  # of gathered Gram blocks at once, on an accelerator


@dataclass(frozen=True, eq=False, kw_only=True)
class LeastSquaresFit:
    """Weights that minimise E‖(W − W′)x‖² among those that vanish outside a mask.

    Attributes:
        weight: W′, exactly zero outside the mask, in the dtype of the given weights.
        bias: the bias, with the mean of what was lost folded in where an intercept was asked.
        ridge: relative ridge used in each row, larger than asked where a factorisation failed.
        rank: numerical rank of each row's kept Gram block; None for Cholesky.
        before: E‖(w − m ∘ w)x‖² of each row, squared output units.
        after: E‖(w − w′)x‖² of each row, squared output units.
    """

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None
    ridge: Float[Tensor, " out"]
    rank: Int[Tensor, " out"] | None
    before: Float[Tensor, " out"]
    after: Float[Tensor, " out"]


def least_squares(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    mask: Bool[Tensor, "out in"],
    *,
    ridge: float = 1e-8,
    solver: str = "cholesky",
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
        ridge: λ relative to the mean of G's diagonal; > 0 for Cholesky, not used by "pinv".
        solver: "cholesky", or "pinv" for the minimum-norm δ without a ridge (eigenvalues below
            n · 2.2e-16 of the largest are cut; six to ten times slower).
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
            unknown solver, an intercept without `mean` or `bias`, a `gram` that is no second
            moment, or a block that cannot be factorised even with ridge 1e-4.

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
    if solver not in ("cholesky", "pinv"):
        raise unknown("solver", solver, ["cholesky", "pinv"])
    if solver == "cholesky":
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
    if aims_at_dense:
        target = w @ c - masked @ g
    else:
        target = (w - masked) @ g  # every right-hand side G_SR w_R in one product
    change, ridges, ranks = _solve(
        g, target, mask, ridge if solver == "cholesky" else None, full_rows=aims_at_dense
    )
    fitted = (w + change).masked_fill(~mask, 0.0)
    out_bias = bias
    if intercept and mean is not None and bias is not None:
        lost = w @ mu_dense - fitted @ mu
        out_bias = (bias.to(torch.float64) + lost).to(bias.dtype)

    def error(weights: Tensor) -> Tensor:
        if not aims_at_dense:
            rest = w - weights
            return ((rest @ g) * rest).sum(1).clamp_min(0)
        parts = ((w @ g_dense) * w) - 2 * ((w @ c) * weights) + ((weights @ g) * weights)
        return parts.sum(1).clamp_min(0)

    return LeastSquaresFit(
        weight=fitted.to(weight.dtype),
        bias=out_bias,
        ridge=ridges,
        rank=ranks,
        before=error(masked),
        after=error(fitted),
    )


def _solve(
    g: Tensor, target: Tensor, mask: Tensor, ridge: float | None, *, full_rows: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """δ of every row (zero outside the mask), the ridges used and, for pinv, the ranks."""
    scale = float(g.diagonal().mean()) if g.shape[0] else 0.0
    ridges = torch.full((mask.shape[0],), 0.0 if ridge is None else ridge, dtype=torch.float64)
    ranks = torch.zeros(mask.shape[0], dtype=torch.int64) if ridge is None else None
    change = torch.zeros_like(target)
    if scale == 0.0:  # every input is zero: any weights serve, so the given ones stay
        return change, ridges, ranks
    if ridge is not None and g.is_cuda:
        _solve_batched(g, target, mask, ridge, scale, change, ridges, full_rows=full_rows)
        return change, ridges, ranks
    groups = list(_rows_by_mask(mask.cpu().numpy(), full_rows=full_rows))
    g, target, solved = g.cpu(), target.cpu(), change.cpu()
    if ridge is not None:
        chosen = pays(groups, len(g))
        damped = g + ridge * scale * torch.eye(len(g), dtype=g.dtype) if any(chosen) else g
        quick = [group for group, yes in zip(groups, chosen, strict=True) if yes]
        groups = [group for group, yes in zip(groups, chosen, strict=True) if not yes]
        groups += solve_by_removed(damped, target, quick, solved) if quick else []
    gram, rhs, delta = g.numpy(), target.numpy(), solved.numpy()
    for kept, rows in groups:
        block = gram.take(kept, axis=0).take(kept, axis=1)
        right = rhs.take(rows, axis=0).take(kept, axis=1)
        if ridge is None:
            solution, rank = _pseudo_solve(block, right, scale)
            if ranks is not None:
                ranks[torch.as_tensor(rows)] = rank
        else:
            solution, used = _cholesky_solve(block, right, ridge, scale)
            ridges[torch.as_tensor(rows)] = used
        delta[np.ix_(rows, kept)] = solution
    change.copy_(solved)
    return change, ridges, ranks


def _rows_by_mask(mask: np.ndarray, *, full_rows: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Kept indices and the rows that keep exactly these; rows that keep none are left out.

    Without `full_rows` also those that keep all: they have lost nothing to make up for.
    """
    groups: dict[bytes, list[int]] = {}
    for row, key in enumerate(np.packbits(mask, axis=1)):
        groups.setdefault(key.tobytes(), []).append(row)
    for rows in groups.values():
        kept = np.flatnonzero(mask[rows[0]])
        if 0 < len(kept) < mask.shape[1] + full_rows:
            yield kept, np.asarray(rows)


def _cholesky_solve(
    block: np.ndarray, right: np.ndarray, ridge: float, scale: float
) -> tuple[np.ndarray, float]:
    """Solve (block + ridge·scale·I) δ = right for every row of `right`; also the ridge used."""
    diagonal = block.diagonal().copy()
    used = ridge
    while True:
        damped = block.copy() if used < RIDGE_LIMIT else block
        np.fill_diagonal(damped, diagonal + used * scale)
        # The transpose of a C-ordered symmetric block is what LAPACK wants, without a copy.
        factor, fault = lapack.dpotrf(damped.T, lower=1, clean=0, overwrite_a=1)
        if fault == 0:
            break
        if used * 10 > RIDGE_LIMIT * (1 + 1e-9):
            raise ValueError(
                f"`gram` is not positive definite on {len(block)} kept inputs even with ridge "
                f"{used:.0e}. Collect it in float64, or pass a larger ridge."
            )
        used *= 10
    solution, _ = lapack.dpotrs(factor, right.T, lower=1)
    return solution.T, used


def _pseudo_solve(block: np.ndarray, right: np.ndarray, scale: float) -> tuple[np.ndarray, int]:
    """The solution of least norm, with eigenvalues at rounding level cut; also the rank."""
    values, vectors = np.linalg.eigh(block)
    top = max(float(values[-1]), 0.0)
    if values[0] < -1e-10 * max(top, scale):
        raise ValueError(
            f"`gram` must be positive semi-definite, got an eigenvalue of {values[0]:.3g} beside "
            f"{top:.3g}. Collect it in float64."
        )
    good = values > len(block) * np.finfo(np.float64).eps * top
    vectors = vectors[:, good]
    return (right @ vectors / values[good]) @ vectors.T, int(good.sum())


def _solve_batched(
    g: Tensor,
    target: Tensor,
    mask: Tensor,
    ridge: float,
    scale: float,
    change: Tensor,
    ridges: Tensor,
    *,
    full_rows: bool,
) -> None:
    """On an accelerator: rows of equal count together, as many at once as the memory limit lets."""
    counts = mask.sum(1)
    for count in sorted(set(counts.tolist())):
        rows = (counts == count).nonzero().flatten()
        if count == 0 or (count == mask.shape[1] and not full_rows):
            continue
        if bool((mask[rows] == mask[rows[0]]).all()):  # one mask: one factorisation
            kept = mask[rows[0]].nonzero().flatten()[None]
            right = target[rows][:, kept[0]].T[None]
            solution, used = _batched_cholesky(g, kept, right, ridge, scale)
            change[rows[:, None], kept] = solution[0].T
            ridges[rows.cpu()] = used.cpu().expand(len(rows))
            continue
        size = max(1, _BATCH_BYTES // (8 * count * count * 3))
        for part in rows.split(size):
            kept = mask[part].nonzero()[:, 1].view(len(part), count)
            right = target[part].gather(1, kept)[..., None]
            solution, used = _batched_cholesky(g, kept, right, ridge, scale)
            change[part[:, None], kept] = solution[..., 0]
            ridges[part.cpu()] = used.cpu()


def _batched_cholesky(
    g: Tensor, kept: Tensor, right: Tensor, ridge: float, scale: float
) -> tuple[Tensor, Tensor]:
    """As `_cholesky_solve` for a stack of kept sets; a set that fails is tried again alone."""
    block = g[kept[:, :, None], kept[:, None, :]]
    eye = torch.eye(kept.shape[1], dtype=g.dtype, device=g.device)
    used = torch.full((len(kept),), ridge, dtype=torch.float64, device=g.device)
    factor, fault = torch.linalg.cholesky_ex(block + used[:, None, None] * scale * eye)
    while bool((fault != 0).any()):
        bad = (fault != 0).nonzero().flatten()
        used[bad] *= 10
        if float(used[bad].max()) > RIDGE_LIMIT * (1 + 1e-9):
            raise ValueError(
                f"`gram` is not positive definite on {kept.shape[1]} kept inputs even with ridge "
                f"{float(used[bad].max()) / 10:.0e}. Collect it in float64, or pass a larger ridge."
            )
        factor[bad], fault[bad] = torch.linalg.cholesky_ex(
            block[bad] + used[bad, None, None] * scale * eye
        )
    return torch.cholesky_solve(right, factor), used
