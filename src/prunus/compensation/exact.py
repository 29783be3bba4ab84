"""Least squares by factorising every row's kept block, exactly."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from prunus.compensation.complement import pays, removed_cost, solve_by_removed
from prunus.later import Later
from prunus.threads import single_threaded

__all__ = ["RIDGE_LIMIT", "cost_of", "solve_exactly"]

lapack = Later("scipy.linalg.lapack")

RIDGE_LIMIT = 1e-4  # escalation after a failed factorisation stops here
_BATCH_BYTES = 2**30  # of gathered Gram blocks at once, on an accelerator


def cost_of(mask: Tensor, *, full_rows: bool) -> float:
    """Multiply-adds of factorising what each row keeps, or what it removes where that is less."""
    groups = list(_rows_by_mask(mask.cpu().numpy(), full_rows=full_rows))
    chosen = pays(groups, mask.shape[1])
    cost = removed_cost([g for g, yes in zip(groups, chosen, strict=True) if yes], mask.shape[1])
    for (kept, rows), quick in zip(groups, chosen, strict=True):
        if not quick:
            cost += len(kept) ** 3 / 3 + len(rows) * len(kept) ** 2
    return cost


@single_threaded
def solve_exactly(
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
