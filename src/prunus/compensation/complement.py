"""Least squares from the removed weights' side, for rows that lose few."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["pays", "removed_cost", "solve_by_removed"]

_FACTOR_BYTES = 32 << 20  # of the groups' factors held at once
_REFINEMENTS = 3
_RESIDUAL = 1e-12  # of the right-hand side
_ROUNDING = 1e-14  # of ‖A‖ ‖δ‖: what a factorisation of the kept block leaves, too

Group = tuple[np.ndarray, np.ndarray]  # kept indices, and the rows that keep exactly these


def pays(groups: Sequence[Group], n: int) -> list[bool]:
    """Which groups are cheaper by their removed side; none where inverting A costs more.

    A kept block costs k³/3 multiply-adds, the removed one (n − k)³/3, and A⁻¹ once n³.
    """
    saved = [len(kept) ** 3 / 3 - (n - len(kept)) ** 3 / 3 for kept, _ in groups]
    cheaper = [0 < n - len(kept) < 0.75 * len(kept) for kept, _ in groups]
    rows = sum(len(rows) for (_, rows), yes in zip(groups, cheaper, strict=True) if yes)
    gain = sum(s for s, yes in zip(saved, cheaper, strict=True) if yes)
    return cheaper if gain > n**3 + 5 * rows * n**2 else [False] * len(groups)


def removed_cost(groups: Sequence[Group], n: int) -> float:
    """Multiply-adds of `solve_by_removed`."""
    factors = sum((n - len(kept)) ** 3 / 3 for kept, _ in groups)
    return n**3 + factors + 5 * n**2 * sum(len(rows) for _, rows in groups) if groups else 0.0


def solve_by_removed(
    matrix: Tensor, target: Tensor, groups: Sequence[Group], change: Tensor
) -> list[Group]:
    """Solve A_SS δ = t_S for the rows of every group through A⁻¹, refined against A itself.

    With P = A⁻¹ and R the removed weights, (A_SS)⁻¹ = P_SS − P_SR (P_RR)⁻¹ P_RS, so that each group
    factorises only P_RR, and everything else is a product over all rows. A residual of more than
    1e-12 ‖t‖ + 1e-14 ‖A‖ ‖δ‖ after three refinements sends the group back.

    Args:
        matrix: A = G + λI, float64.
        target: t of every row, float64.
        groups: kept indices and rows.
        change: takes δ, zero outside S, for the groups that were solved.

    Returns:
        the groups that were not solved to that residual.

    References:
        the block inverse; with t = G_SR w_R the multi-weight update of Hassibi and Stork (1993).
    """
    n = len(matrix)
    factor, fault = torch.linalg.cholesky_ex(matrix)
    if int(fault) != 0:
        return list(groups)
    inverse = torch.cholesky_inverse(factor).contiguous()
    entries = inverse.numpy()
    back: list[Group] = []
    for part in _parts(groups, n):
        rows = torch.from_numpy(np.concatenate([rows for _, rows in part]))
        inside = np.zeros((len(rows), n))
        solvers: list[tuple[slice, np.ndarray, Tensor]] = []
        failed = torch.zeros(len(rows), dtype=torch.bool)
        begin = 0
        for kept, own in part:
            place = slice(begin, begin + len(own))
            begin += len(own)
            inside[place, kept] = 1.0
            removed = np.flatnonzero(inside[place.start] == 0)
            block = entries.take(removed, axis=0).take(removed, axis=1)
            lower, fault = torch.linalg.cholesky_ex(torch.from_numpy(block))
            failed[place] = int(fault) != 0
            solvers.append((place, removed, lower))
        mask = torch.from_numpy(inside)
        right = target[rows] * mask
        found, poor = _refined(matrix, right, _inverse_map(inverse, mask, solvers), mask)
        bad = failed | poor
        change[rows[~bad]] = found[~bad]
        for (kept, own), (place, _, _) in zip(part, solvers, strict=True):
            if bool(bad[place].any()):
                back.append((kept, own[bad[place].numpy()]))
    return back


def _refined(
    matrix: Tensor, right: Tensor, solve: Callable[[Tensor], Tensor], inside: Tensor
) -> tuple[Tensor, Tensor]:
    """δ of every row, and whether its residual is too large still."""
    size, length = float(matrix.norm()), right.norm(dim=1)
    found = solve(right)
    for step in range(_REFINEMENTS + 1):
        left = (right - found @ matrix) * inside
        limit = _RESIDUAL * length + _ROUNDING * size * found.norm(dim=1)
        poor = ~(left.norm(dim=1) <= limit)
        if step == _REFINEMENTS or not bool(poor.any()):
            break
        found = found + solve(left)
    return found, poor


def _inverse_map(
    inverse: Tensor, inside: Tensor, solvers: Sequence[tuple[slice, np.ndarray, Tensor]]
) -> Callable[[Tensor], Tensor]:
    """r ↦ (P_SS − P_SR (P_RR)⁻¹ P_RS) r for rows r that are zero outside S."""

    def solve(right: Tensor) -> Tensor:
        whole = right @ inverse
        y = torch.zeros_like(whole)
        taken, given = whole.numpy(), y.numpy()
        for place, removed, lower in solvers:
            lost = torch.from_numpy(taken[place].take(removed, axis=1))
            given[place, removed] = torch.cholesky_solve(lost.T, lower).T.numpy()
        return (whole - y @ inverse) * inside

    return solve


def _parts(groups: Sequence[Group], n: int) -> list[list[Group]]:
    """Groups together whose factors and rows fit the memory limit."""
    parts: list[list[Group]] = []
    used = float("inf")
    for kept, rows in groups:
        need = 8 * ((n - len(kept)) ** 2 + 4 * len(rows) * n)
        if used + need > _FACTOR_BYTES:
            parts.append([])
            used = 0.0
        parts[-1].append((kept, rows))
        used += need
    return parts
