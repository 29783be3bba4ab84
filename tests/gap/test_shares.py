"""Relative errors from shares: attained bounds, coverage over draws, budgets against a solver."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch

from prunus.theory.gap.shares import (
    drawn_error,
    draws_needed,
    equal_error_draws,
    exceeding,
    known_error,
    least_sum_draws,
    replacement_error,
    sharpest_error,
)


def shares(weight, x):
    """g (samples, out, in) by the definition, for inputs ≥ 0."""
    found = torch.zeros(len(x), *weight.shape, dtype=torch.float64)
    for n, i, j in itertools.product(range(len(x)), *map(range, weight.shape)):
        own = weight[i] * weight[i, j] > 0
        total = float((weight[i].abs() * x[n] * own).sum())
        if total > 0:
            found[n, i, j] = abs(float(weight[i, j])) * float(x[n, j]) / total
    return found


def problem(seed=0, out=4, wide=9, samples=30):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, wide, dtype=torch.float64, generator=g)
    x = torch.rand(samples, wide, dtype=torch.float64, generator=g)
    x = x * (torch.rand(samples, wide, generator=g) > 0.4)  # some inputs are off
    return weight, x, g


def sums(weight, x):
    """z⁺ and z⁻, (samples, out, 2)."""
    parts = (weight.clamp(min=0), (-weight).clamp(min=0))
    return torch.stack([x @ part.T for part in parts], -1)


def test_no_calibration_input_exceeds_the_bound_of_any_new_weights():
    for seed in range(10):
        weight, x, g = problem(seed)
        s = shares(weight, x).amax(0)
        mask = torch.rand(weight.shape, generator=g) < 0.6
        scaled = weight * mask / 0.6
        other = weight + 0.3 * torch.randn(weight.shape, dtype=torch.float64, generator=g)
        for new in (weight * mask, scaled, other, weight):
            bound = known_error(weight, new, s)
            error = (x @ (new - weight).T).abs()
            assert bool((error <= (sums(weight, x) * bound).sum(-1) + 1e-12).all())
        # The negative control: a tenth off every share is not enough.
        small = known_error(weight, weight * mask, 0.9 * s)
        error = (x @ (weight * ~mask).T).abs()
        if seed == 0:
            assert bool((error > (sums(weight, x) * small).sum(-1) + 1e-12).any())


def test_the_bound_of_removed_weights_is_attained():
    """One weight gone, and the input on which its share is largest: equality."""
    weight = torch.tensor([[1.0, 2.0, 3.0]]).double()
    x = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]]).double()
    s = shares(weight, x).amax(0)
    new = weight.clone()
    new[0, 0] = 0
    assert known_error(weight, new, s)[0].tolist() == pytest.approx([2 / 7, 0.0])
    error = (x @ (new - weight).T).abs() / (x @ weight.T)
    assert float(error.max()) == pytest.approx(2 / 7, abs=1e-15)


def test_known_error_is_the_linear_program():
    """max Σ r g over 0 ≤ g ≤ s, Σ g ≤ 1: by scipy."""
    weight, x, g = problem(3)
    s = shares(weight, x).amax(0)
    new = weight * (2 * torch.rand(weight.shape, dtype=torch.float64, generator=g))
    found = known_error(weight, new, s)
    for i, side in itertools.product(range(len(weight)), (0, 1)):
        own = (weight[i] > 0) if side == 0 else (weight[i] < 0)
        change = ((new - weight)[i].abs() / weight[i].abs())[own].numpy()
        caps = [(0, float(c)) for c in s[i][own]]
        answer = scipy.optimize.linprog(-change, A_ub=[[1.0] * len(caps)], b_ub=[1.0], bounds=caps)
        assert -answer.fun == pytest.approx(float(found[i, side]), abs=1e-9)


def test_a_weight_that_was_zero_has_no_share():
    weight = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).double()
    new = torch.tensor([[0.5, 1.0], [2.0, 0.0]]).double()
    found = known_error(weight, new, torch.full((2, 2), 0.5))
    assert found[0].tolist() == [math.inf, math.inf]
    assert found[1].tolist() == [0.5, 0.0]


@pytest.mark.parametrize(("draws", "delta"), [(50, 0.05), (200, 0.05), (400, 0.2)])
def test_draws_with_replacement_violate_bernstein_no_more_often_than_said(draws, delta):
    """2000 draws at a fixed x: at most δ + 4 SE of them (false alarm 3e-5) above ε."""
    weight, x, _ = problem(1, out=1, wide=40, samples=64)
    weight = weight.abs()
    s = shares(weight, x).amax(0)[0]
    total = float(s.sum())
    rng = np.random.default_rng(0)
    q = (s / s.sum()).numpy()
    counts = rng.multinomial(draws, q, size=2000)
    terms = (weight[0] * x[0]).numpy()
    values = counts @ np.divide(terms, draws * q, out=np.zeros_like(q), where=q > 0)
    relative = np.abs(values / terms.sum() - 1)
    limit = delta + 4 * math.sqrt(delta * (1 - delta) / 2000)
    eps = replacement_error(total, draws, delta)
    tight = sharpest_error(total, draws, delta)
    assert tight <= eps
    assert (relative >= tight).mean() <= limit
    assert (relative >= tight / 6).mean() > limit  # the negative control
    needed = draws_needed(total, eps, delta)
    assert abs(needed - draws) <= 1
    # Unbiased: the mean within 4 standard errors.
    assert abs(values.mean() - terms.sum()) < 4 * values.std() / math.sqrt(2000)


@pytest.mark.parametrize(("odds", "weights"), [(0.5, 1), (0.2, 3), (0.9, 4)])
def test_at_the_error_of_a_draw_bernsteins_tails_add_up_to_delta(odds, weights):
    """Both tails of every sum: two signs of the weights, two of the inputs, in every row.

    One weight of each sign may have the whole of its sum, so that a term is at most
    b = max(1/π − 1, 1) and the variance at most v = 1/π − 1.
    """
    delta, rows = 0.05, 3
    weight = torch.ones(rows, weights, dtype=torch.float64)
    found = drawn_error(torch.full_like(weight, odds), torch.ones_like(weight), weight, delta)
    spread, term = 1 / odds - 1, max(1 / odds - 1, 1.0)
    for eps in found.tolist():
        tail = math.exp(-(eps**2) / 2 / (spread + term * eps / 3))
        assert rows * 2 * 2 * 2 * tail == pytest.approx(delta)


def test_chernoff_is_the_exact_binomial_tail_where_draws_are_all_or_nothing():
    """Draws worth S z with probability 1/S: the tail of a binomial, never above δ."""
    from scipy import stats

    total, draws, delta = 4.0, 60, 0.05
    eps = sharpest_error(total, draws, delta)
    high = math.ceil(draws * (1 + eps) / total - 1e-9)
    low = math.floor(draws * (1 - eps) / total + 1e-9)
    tail = stats.binom.sf(high - 1, draws, 1 / total) + stats.binom.cdf(low, draws, 1 / total)
    assert 1e-4 < tail <= delta
    assert sharpest_error(1.0, 5, 0.05) == 0  # one weight carries the sum


def test_equal_errors_are_equal_and_the_least_sum_is_least():
    totals, draws, delta = [1.5, 3.0, 8.0, 20.0], 4000, 0.05
    level = equal_error_draws(totals, draws, delta)
    assert sum(level) == draws
    errors = [replacement_error(s, m, delta) for s, m in zip(totals, level, strict=True)]
    assert max(errors) == pytest.approx(min(errors), rel=0.02)
    least = least_sum_draws(totals, draws, delta)
    assert sum(least) == draws

    def cost(counts):
        return sum(replacement_error(s, int(m), delta) for s, m in zip(totals, counts, strict=True))

    best = cost(least)
    assert best < cost(level)
    for i, j in itertools.permutations(range(4), 2):  # no exchange of draws is better
        for step in (1, 20):
            moved = list(least)
            moved[i] += step
            moved[j] -= step
            assert cost(moved) >= best - 1e-12
    assert sum(least_sum_draws(totals, 4, delta)) == sum(equal_error_draws(totals, 5, delta)) - 1


def test_a_fresh_share_exceeds_the_largest_of_n_with_probability_1_over_n_plus_1():
    """Over 4000 draws of S and x, one weight: within 4 standard errors of 1/(n + 1), ties apart."""
    assert exceeding(128) == 1 / 129
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 6, dtype=torch.float64, generator=g).abs()
    n, runs = 9, 4000
    x = torch.randn(runs, n + 1, 6, dtype=torch.float64, generator=g).abs()
    part = (weight * x)[..., 0] / (x @ weight[0])
    over = float((part[:, -1] > part[:, :-1].amax(1)).double().mean())
    p = exceeding(n)
    assert abs(over - p) < 4 * math.sqrt(p * (1 - p) / runs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: replacement_error(2.0, 0, 0.05), "`draws` must be a whole number >= 1"),
        (lambda: replacement_error(2.0, 5, 0.0), r"`delta` must lie in \(0, 1\)"),
        (lambda: draws_needed(2.0, 0.0, 0.05), "`eps` must be a finite number > 0"),
        (lambda: draws_needed(math.nan, 0.1, 0.05), "`total` must be a finite number > 0"),
        (lambda: exceeding(0), "`samples` must be a whole number >= 1"),
        (lambda: equal_error_draws([2.0, 2.0], 1, 0.1), "each of 2 sums one at least, got 1"),
        (lambda: least_sum_draws([], 3, 0.1), "each of 0 sums one at least, got 3"),
        (
            lambda: known_error(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 2)),
            r"must have one shape, got \(2, 3\), \(2, 3\) and \(3, 2\)",
        ),
        (
            lambda: known_error(torch.ones(1, 1), torch.ones(1, 1), 2 * torch.ones(1, 1)),
            r"`share` must lie in \[0, 1\]",
        ),
        (
            lambda: known_error(torch.ones(1, 1), torch.full((1, 1), math.nan), torch.ones(1, 1)),
            "must be finite",
        ),
        (
            lambda: drawn_error(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1), 0.1),
            "a weight of probability 0 has no bound",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
