"""Least squares against regression on the inputs themselves."""

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.compensation.exact import _solve_batched
from prunus.compensation.least_squares import least_squares
from reference import fixture
from reference import least_squares as slow


def layer(seed=0, rows=6, n=12, samples=200, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, n)) @ rng.normal(size=(n, n)) + 1.0
    return x, torch.tensor(rng.normal(size=(rows, n)), dtype=dtype), torch.tensor(x.T @ x / samples)


def random_mask(rows, n, kept, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.permuted(np.tile(np.arange(n) < kept, (rows, 1)), axis=1))


def test_fixture_values():
    x = fixture.inputs()
    gram = torch.tensor(x.T @ x)
    w = torch.tensor(fixture.ROW)[None]
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, [0, 3, 5, 7]] = True
    fit = least_squares(w, gram, mask, ridge=1e-12)
    expected = torch.tensor([0.21676444, 0.68650667, 0.27015111, -1.17713333], dtype=torch.float64)
    torch.testing.assert_close(fit.weight[mask], expected, atol=1e-7, rtol=0)
    assert float(fit.after) == pytest.approx(54.1240844444, rel=1e-8)
    assert float(fit.before) == pytest.approx(181.375, rel=1e-12)


@pytest.mark.parametrize(
    ("solver", "ridge", "atol"), [("pinv", 0.0, 1e-7), ("cholesky", 1e-10, 1e-6)]
)
def test_fixture_singular_block_gives_the_minimum_norm(solver, ridge, atol):
    x = fixture.inputs()  # columns 5 and 6 are equal
    w = torch.tensor(fixture.ROW)[None]
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, [0, 5, 6]] = True
    fit = least_squares(w, torch.tensor(x.T @ x), mask, solver=solver, ridge=ridge)
    expected = torch.tensor([0.55924518, 0.13429094, -0.01570906], dtype=torch.float64)
    torch.testing.assert_close(fit.weight[mask], expected, atol=atol, rtol=0)
    if solver == "pinv":
        assert fit.rank is not None
        assert fit.rank.tolist() == [2]


@pytest.mark.parametrize("solver", ["cholesky", "pinv"])
def test_equals_regression_on_the_inputs(solver):
    x, w, gram = layer()
    mask = random_mask(6, 12, 5)
    fit = least_squares(w, gram, mask, solver=solver, ridge=1e-12)
    expected = slow.refit(w.numpy(), x, mask.numpy())
    # the normal equations square a condition of about 1e2
    torch.testing.assert_close(fit.weight, torch.tensor(expected), rtol=1e-7, atol=1e-8)
    measured = torch.tensor(slow.error(w.numpy(), expected, x))
    torch.testing.assert_close(fit.after, measured, rtol=1e-7, atol=1e-9)
    before = torch.tensor(slow.error(w.numpy(), w.numpy() * mask.numpy(), x))
    torch.testing.assert_close(fit.before, before, rtol=1e-10, atol=1e-12)


def test_intercept_equals_regression_with_a_constant():
    x, w, gram = layer(1)
    mask = random_mask(6, 12, 5, 1)
    bias = torch.linspace(-1, 1, 6, dtype=torch.float64)
    fit = least_squares(
        w, gram, mask, ridge=1e-12, mean=torch.tensor(x.mean(0)), bias=bias, intercept=True
    )
    expected, gain = slow.refit_with_intercept(w.numpy(), x, mask.numpy())
    torch.testing.assert_close(fit.weight, torch.tensor(expected), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(fit.bias - bias, torch.tensor(gain), rtol=1e-6, atol=1e-7)
    plain = least_squares(w, gram, mask, ridge=1e-12)
    assert (fit.after <= plain.after * (1 + 1e-9)).all()


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("solver", ["cholesky", "pinv"])
def test_cross_moments_aim_at_the_dense_outputs(solver, intercept):
    """Regression of the dense outputs on the pruned inputs themselves; full rows move, too."""
    x, w, _ = layer(10)
    rng = np.random.default_rng(10)
    pruned = 0.8 * x + 0.5 * rng.normal(size=x.shape) + 0.3
    bias = torch.tensor(rng.normal(size=6))
    mask = random_mask(6, 12, 5, 10)
    mask[0], mask[1] = True, False
    moments = {
        "cross": torch.tensor(x.T @ pruned / 200), "dense_gram": torch.tensor(x.T @ x / 200),
        "dense_mean": torch.tensor(x.mean(0)), "mean": torch.tensor(pruned.mean(0)),
    }  # fmt: skip
    fit = least_squares(
        w, torch.tensor(pruned.T @ pruned / 200), mask, ridge=1e-12, solver=solver, bias=bias,
        intercept=intercept, **moments,
    )  # fmt: skip
    target = x @ w.numpy().T
    for h in range(6):
        kept = mask[h].numpy()
        columns = np.c_[pruned[:, kept], np.ones(200)] if intercept else pruned[:, kept]
        solved = np.linalg.lstsq(columns, target[:, h], rcond=None)[0]
        wanted = solved[:-1] if intercept else solved
        found = fit.weight[h].numpy()
        np.testing.assert_allclose(found[kept], wanted, rtol=1e-6, atol=1e-7)
        assert (found[~kept] == 0).all()
        rest = target[:, h] - columns @ solved
        assert float(fit.after[h]) == pytest.approx(np.mean(rest**2), rel=1e-6)
        moved = float(fit.bias[h] - bias[h])
        assert moved == pytest.approx(solved[-1] if intercept else 0.0, abs=1e-6)
    with pytest.raises(ValueError, match="`cross` needs `dense_gram` beside it"):
        least_squares(w, torch.eye(12), mask, cross=torch.eye(12))


def test_rows_that_keep_nothing_are_not_solved(monkeypatch):
    _, w, gram = layer(11)
    module = importlib.import_module("prunus.compensation.exact")
    monkeypatch.setattr(module, "_cholesky_solve", None)
    fit = least_squares(w, gram, torch.zeros(6, 12, dtype=torch.bool))
    assert (fit.weight == 0).all()
    torch.testing.assert_close(fit.after, ((w @ gram) * w).sum(1))


def test_equals_the_multi_weight_obs_update():
    _, w, gram = layer(2)
    mask = random_mask(6, 12, 7, 2)
    lam = 1e-2 * gram.diagonal().mean()
    inverse = torch.linalg.inv(gram + lam * torch.eye(12))
    fit = least_squares(w, gram, mask, ridge=1e-2)
    for row in range(6):
        kept, gone = mask[row], ~mask[row]
        step = inverse[kept][:, gone] @ torch.linalg.solve(inverse[gone][:, gone], w[row, gone])
        torch.testing.assert_close(fit.weight[row, kept], w[row, kept] - step)


@given(st.integers(0, 10**6), st.integers(0, 12), st.sampled_from([1e-10, 1e-6, 1e-2, 1.0]))
@settings(max_examples=40)
def test_laws(seed, kept, ridge):
    _, w, gram = layer(seed, samples=9)  # fewer samples than inputs: singular
    mask = random_mask(6, 12, kept, seed)
    w0, g0, m0 = w.clone(), gram.clone(), mask.clone()
    fit = least_squares(w, gram, mask, ridge=ridge)
    assert torch.equal(w, w0)
    assert torch.equal(gram, g0)
    assert torch.equal(mask, m0)
    assert (fit.weight[~mask] == 0).all()
    # never worse than no reweighting, up to rounding of the objective itself
    slack = 1e-12 * ((w @ gram) * w).sum(1)
    assert (fit.after <= fit.before + slack).all()
    if kept == 12:
        assert torch.equal(fit.weight, w)
    if kept < 12:  # a larger mask never has a larger optimum
        more = mask.clone()
        more[torch.arange(6), (~mask).float().argmax(1)] = True
        wide = least_squares(w, gram, more, solver="pinv")
        narrow = least_squares(w, gram, mask, solver="pinv")
        assert (wide.after <= narrow.after + 1e-9 * ((w @ gram) * w).sum(1)).all()


def test_rows_with_one_mask_share_one_factorisation(monkeypatch):
    module = importlib.import_module("prunus.compensation.exact")

    calls = []
    real = module._cholesky_solve
    monkeypatch.setattr(module, "_cholesky_solve", lambda *a: calls.append(a[1].shape) or real(*a))
    _, w, gram = layer(3)
    mask = (torch.arange(12) % 2 == 0).expand(6, 12)
    fit = least_squares(w, gram, mask)
    assert calls == [(6, 6)]
    alone = torch.cat([least_squares(w[i : i + 1], gram, mask[i : i + 1]).weight for i in range(6)])
    torch.testing.assert_close(fit.weight, alone)


def test_batched_solver_agrees_with_the_loop():
    _, w, gram = layer(4)
    for mask in (random_mask(6, 12, 7, 4), (torch.arange(12) < 7).expand(6, 12)):
        scale = float(gram.diagonal().mean())
        change, ridges = torch.zeros_like(w), torch.full((6,), 1e-8, dtype=torch.float64)
        target = w.masked_fill(mask, 0) @ gram
        _solve_batched(gram, target, mask, 1e-8, scale, change, ridges, full_rows=False)
        expected = least_squares(w, gram, mask).weight
        torch.testing.assert_close((w + change).masked_fill(~mask, 0), expected)
        assert (ridges == 1e-8).all()


@pytest.mark.parametrize("place", [0, 7, 8, 63, 64, 71, 79])
def test_rows_share_a_factorisation_only_where_every_entry_agrees(place):
    rng = np.random.default_rng(8)
    x = rng.normal(size=(300, 80)) @ rng.normal(size=(80, 80))
    w, gram = torch.tensor(rng.normal(size=(2, 80))), torch.tensor(x.T @ x / 300)
    mask = torch.tensor(np.tile(rng.random(80) < 0.5, (2, 1)))
    mask[1, place] = ~mask[0, place]
    both = least_squares(w, gram, mask)
    for row in range(2):
        alone = least_squares(w[row : row + 1], gram, mask[row : row + 1])
        torch.testing.assert_close(both.weight[row], alone.weight[0], rtol=1e-9, atol=1e-12)


def test_a_ridge_that_fails_is_tried_tenfold():
    """The least power of ten that makes the kept block definite, and no larger one."""
    rng = np.random.default_rng(7)
    turn = np.linalg.qr(rng.normal(size=(11, 11)))[0]
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[:, 11] = False
    for power in (-8, -7, -6, -5):
        values, gram = np.ones(11), torch.eye(12, dtype=torch.float64)
        values[0] = -3 * 10.0 ** (power - 1)  # where the diagonal's mean is nearly 1
        gram[:11, :11] = torch.tensor(turn @ np.diag(values) @ turn.T)
        fit = least_squares(torch.tensor(rng.normal(size=(3, 12))), gram, mask, ridge=1e-9)
        assert fit.ridge.tolist() == pytest.approx([10.0**power] * 3)


def test_failed_factorisation_raises_the_ridge_and_says_so():
    _, w, gram = layer(5)
    scale = float(gram.diagonal().mean())
    values, vectors = torch.linalg.eigh(gram[1:, 1:])
    values[0] = -3e-7 * scale  # as the rounding of a float32 Gram leaves it
    bad = gram.clone()
    bad[1:, 1:] = vectors @ torch.diag(values) @ vectors.T
    mask = (torch.arange(12) > 0).expand(6, 12)
    fit = least_squares(w, bad, mask, ridge=1e-9)
    assert (fit.ridge > 1e-9).all()
    assert (fit.ridge <= 1e-4 * (1 + 1e-9)).all()
    with pytest.raises(ValueError, match="not positive definite on 11 kept inputs even with ridge"):
        least_squares(w, bad - 0.01 * scale * torch.eye(12), mask)


def test_dead_inputs_and_dead_layers():
    _, w, gram = layer(6)
    gram[3], gram[:, 3] = 0.0, 0.0  # an input that is always zero
    mask = random_mask(6, 12, 6, 6)
    mask[:, 3] = True
    fit = least_squares(w, gram, mask)
    assert torch.equal(fit.weight[:, 3], w[:, 3])
    fit = least_squares(w, torch.zeros(12, 12, dtype=torch.float64), mask)
    assert torch.equal(fit.weight, w * mask)
    zero = least_squares(torch.zeros_like(w), gram, mask)
    assert (zero.weight == 0).all()


def test_dtype_returns():
    _, w, gram = layer(7, dtype=torch.float32)
    fit = least_squares(w, gram, random_mask(6, 12, 5))
    assert fit.weight.dtype == torch.float32
    assert fit.after.dtype == torch.float64


def test_bad_input():
    _, w, gram = layer(8)
    mask = random_mask(6, 12, 5)
    broken = gram.clone()
    broken[0, 1] = math.nan
    with pytest.raises(ValueError, match=r"`gram` must be finite, got nan at index \[0, 1\]"):
        least_squares(w, broken, mask)
    for ridge in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`ridge` must be a finite number > 0"):
            least_squares(w, gram, mask, ridge=ridge)
    with pytest.raises(ValueError, match=r"Unknown solver 'cholesy'\. Did you mean cholesky\?"):
        least_squares(w, gram, mask, solver="cholesy")
    with pytest.raises(ValueError, match="An intercept needs `mean` and `bias`, got no `mean`"):
        least_squares(w, gram, mask, intercept=True)
    with pytest.raises(ValueError, match="must be a second moment, with diagonal >= 0"):
        least_squares(w, -gram, mask)
    skew = gram.clone()
    skew[0, 1] = skew[1, 0] = 10 * gram.max()
    keep = (torch.arange(12) != 5).expand(6, 12)
    with pytest.raises(ValueError, match="`gram` must be positive semi-definite"):
        least_squares(w, skew, keep, solver="pinv")
