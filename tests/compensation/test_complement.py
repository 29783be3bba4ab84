"""Least squares from the removed side against a plain solve of every row's kept block."""

import numpy as np
import pytest
import torch

from prunus.compensation.complement import pays, solve_by_removed
from prunus.compensation.exact import _rows_by_mask
from prunus.compensation.least_squares import least_squares

ROWS, N = 60, 40


def gram_of(kind: str) -> torch.Tensor:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, N)) @ rng.normal(size=(N, N))
    if kind == "twins and dead inputs":
        x[:, 1], x[:, 2], x[:, 5:9] = x[:, 0], x[:, 0], 0.0
    if kind == "few samples":
        x = x[:15]
    if kind == "over ten decades":
        x *= np.logspace(0, -5, N)
    return torch.tensor(x.T @ x / len(x))


def problem(kind: str, kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(4)
    mask = rng.permuted(np.tile(np.arange(N) < kept, (ROWS, 1)), axis=1)
    mask[1] = mask[0]  # two rows of one mask
    return torch.tensor(rng.normal(size=(ROWS, N))), gram_of(kind), torch.tensor(mask)


def plain(matrix: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(target)
    for h, kept in enumerate(mask):
        block = matrix[kept][:, kept]
        out[h, kept] = torch.cholesky_solve(
            target[h, kept][:, None], torch.linalg.cholesky(block)
        ).flatten()
    return out


@pytest.mark.parametrize("kept", [25, 33, 39])
@pytest.mark.parametrize(
    "kind", ["plain", "twins and dead inputs", "few samples", "over ten decades"]
)
def test_equals_the_kept_side(kind, kept):
    weight, gram, mask = problem(kind, kept)
    matrix = gram + 1e-8 * gram.diagonal().mean() * torch.eye(N, dtype=gram.dtype)
    target = weight.masked_fill(mask, 0.0) @ gram
    groups = list(_rows_by_mask(mask.numpy(), full_rows=False))
    assert len(groups) < ROWS
    change = torch.zeros_like(target)
    assert solve_by_removed(matrix, target, groups, change) == []
    expected = plain(matrix, target, mask)
    assert bool((change[~mask] == 0).all())

    def objective(delta):
        return ((delta @ matrix) * delta).sum(1) - 2 * (delta * target).sum(1)

    scale = ((weight @ gram) * weight).sum(1)
    torch.testing.assert_close(objective(change) / scale, objective(expected) / scale, atol=1e-12,
                               rtol=0)  # fmt: skip
    # outputs agree as far as the damped matrix, with a condition of up to 4e9, lets them
    moved = change - expected
    assert float((((moved @ gram) * moved).sum(1) / scale).max()) < 1e-14


def test_least_squares_takes_it_where_it_pays(monkeypatch):
    import importlib

    module = importlib.import_module("prunus.compensation.exact")
    weight, gram, mask = problem("few samples", 36)
    seen = []

    def spy(matrix, target, groups, change):
        seen.append(len(groups))
        return solve_by_removed(matrix, target, groups, change)

    monkeypatch.setattr(module, "solve_by_removed", spy)
    quick = least_squares(weight, gram, mask)
    assert seen == [ROWS - 1]
    monkeypatch.setattr(module, "solve_by_removed", lambda m, t, groups, c: list(groups))
    slow = least_squares(weight, gram, mask)
    torch.testing.assert_close(quick.after, slow.after, rtol=1e-6, atol=1e-12)
    assert torch.equal(quick.ridge, slow.ridge)


def test_what_cannot_be_solved_comes_back():
    weight, gram, mask = problem("plain", 36)
    groups = list(_rows_by_mask(mask.numpy(), full_rows=False))
    change = torch.zeros_like(weight)
    indefinite = gram - 2 * gram.diagonal().max() * torch.eye(N, dtype=gram.dtype)
    assert len(solve_by_removed(indefinite, weight @ gram, groups, change)) == len(groups)
    # float64 cannot reach the residual at a condition of 1e20: nothing is taken for solved
    graded = torch.logspace(0, -20, N, dtype=torch.float64).diag() + 1e-25
    target = torch.ones_like(weight)
    left = solve_by_removed(graded, target, groups, change)
    done = torch.ones(ROWS, dtype=torch.bool)
    for _, rows in left:
        done[torch.from_numpy(rows)] = False
    residual = ((change @ graded - target) * mask).norm(dim=1)
    limit = 1e-12 * target.masked_fill(~mask, 0).norm(dim=1)
    limit = limit + 1e-14 * graded.norm() * change.norm(dim=1)
    assert bool((residual[done] <= 1.01 * limit[done]).all())
    assert bool((change[~done] == 0).all())


def test_when_it_pays():
    one = [(np.arange(30), np.arange(60))]  # one mask for all rows
    assert pays(one, 40) == [False]
    many = [(np.delete(np.arange(40), [i % 40]), np.array([i])) for i in range(60)]
    assert pays(many, 40) == [True] * 60
    half = [(np.arange(20), np.array([i])) for i in range(60)]
    assert pays(half, 40) == [False] * 60
    assert pays([], 40) == []


def test_what_the_inverse_leaves_is_refined_away():
    """At a condition of 1e9 the first answer is far from solved; the last as near as promised."""
    rng = np.random.default_rng(5)
    turn = torch.tensor(np.linalg.qr(rng.normal(size=(N, N)))[0])
    matrix = turn @ torch.logspace(0, -9, N, dtype=torch.float64).diag() @ turn.T
    matrix = (matrix + matrix.T) / 2
    _, _, mask = problem("plain", 33)
    groups = list(_rows_by_mask(mask.numpy(), full_rows=False))
    answer = torch.tensor(rng.normal(size=(ROWS, N))) * mask
    target = answer @ matrix

    def residual(change):
        left = ((change @ matrix - target) * mask).norm(dim=1)
        size = 1e-12 * (target * mask).norm(dim=1) + 1e-14 * matrix.norm() * change.norm(dim=1)
        return left / size

    inverse, once = torch.linalg.inv(matrix), torch.zeros_like(target)
    for h, kept in enumerate(mask):  # the block inverse, not refined
        right = target[h] * kept
        part = inverse[~kept][:, ~kept]
        lost = torch.linalg.solve(part, inverse[~kept] @ right)
        once[h] = (inverse @ right - inverse[:, ~kept] @ lost) * kept
    change = torch.zeros_like(target)
    assert solve_by_removed(matrix, target, groups, change) == []
    assert float(residual(once).min()) > 10
    assert float(residual(change).max()) <= 1.01
