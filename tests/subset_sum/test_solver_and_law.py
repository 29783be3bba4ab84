"""Nearest subsets against enumeration and an integer program; the law against draws."""

import math

import numpy as np
import pytest
import torch

from prunus.theory.subset_sum import (
    draw_items,
    failure_probability,
    items_needed,
    largest_error,
    least_items,
    median_error,
    nearest_single,
    nearest_subset,
    single_items_needed,
)
from prunus.theory.subset_sum import law as law_of_sums


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def every_sum(items: torch.Tensor) -> torch.Tensor:
    """All subset sums of each row, one item after another."""
    sums = torch.zeros(len(items), 1, dtype=torch.float64)
    for column in items.T:
        sums = torch.cat([sums, sums + column[:, None]], 1)
    return sums


@pytest.mark.parametrize("n", [1, 2, 7, 10, 11, 12, 14])
def test_nearest_of_all_sums(n, g):
    items = draw_items("uniform", 40, n, generator=g)
    items[:5] *= torch.tensor([1e-6, 1e3, 0.0, 1.0, -1.0]).double()[:, None]
    targets = 2 * torch.rand(40, dtype=torch.float64, generator=g) - 1
    last = float(items[8].sum())
    targets[5:9] = torch.tensor([100.0, -100.0, 0.0, last], dtype=torch.float64)
    mask, error = nearest_subset(items, targets)
    best = (every_sum(items) - targets[:, None]).abs().min(1).values
    torch.testing.assert_close(error, best, atol=1e-12, rtol=0)
    torch.testing.assert_close(((items * mask).sum(1) - targets).abs(), error, atol=0, rtol=0)
    assert float(error[7]) == 0
    assert float(error[8]) < 1e-15
    single = nearest_single(items, targets)[1]
    assert bool((error <= single + 1e-15).all())


def test_nearest_is_what_an_integer_program_finds(g):
    from scipy.optimize import LinearConstraint, milp

    items, targets = draw_items("product", 10, 12, generator=g), torch.full((10,), 0.25).double()
    _, error = nearest_subset(items, targets)
    for row, found in zip(items.numpy(), error.tolist(), strict=True):
        both = np.array([[*row, -1.0], [*-row, -1.0]])  # minimise s with |x·m − z| ≤ s
        answer = milp(
            np.array([*[0.0] * 12, 1.0]),
            constraints=LinearConstraint(both, -np.inf, [0.25, -0.25]),
            integrality=[1] * 12 + [0],
            bounds=(0, [1] * 12 + [np.inf]),
        )
        assert answer.fun == pytest.approx(found, abs=2e-6)  # its feasibility tolerance


def test_chunks_do_not_show(g, monkeypatch):
    items, targets = draw_items("uniform", 50, 13, generator=g), torch.linspace(-0.5, 0.5, 50)
    whole = nearest_subset(items, targets)
    monkeypatch.setattr("prunus.theory.subset_sum.solver.CHUNK_BYTES", 2**14)
    parts = nearest_subset(items, targets)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])
    assert nearest_subset(torch.zeros(0, 3), torch.zeros(0))[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("items", "targets", "message"),
    [
        (torch.zeros(2, 0), torch.zeros(2), "at least one item per problem, got 0"),
        (
            torch.zeros(1, 35),
            torch.zeros(1),
            r"at most 34 items per problem, got 35: its half sums",
        ),
        (torch.zeros(2, 3), torch.zeros(3), "one number for each of the 2 rows"),
        (torch.full((1, 3), math.nan), torch.zeros(1), "`items` must be finite"),
        (torch.zeros(1, 3), torch.full((1,), math.inf), "`targets` must be finite"),
    ],
)
def test_bad_problems(items, targets, message):
    with pytest.raises(ValueError, match=message):
        nearest_subset(items, targets)


@pytest.mark.parametrize(
    ("n", "eps", "target", "items"),
    [
        (8, 0.01, 0.25, "uniform"),
        (10, 0.003, 0.25, "uniform"),
        (12, 0.001, 0.25, "uniform"),
        (10, 0.003, 0.5, "uniform"),
        (12, 0.001, 0.5, "product"),
        (16, 1e-3, 0.5, "uniform"),  # in the tail, where the law is averaged in closed form
    ],
)
def test_law_of_failures(n, eps, target, items, g):
    draws = 2000
    _, error = nearest_subset(
        draw_items(items, draws, n, generator=g), torch.full((draws,), target)
    )
    missed = float((error > eps).double().mean())
    law = failure_probability(n, eps, target, items)
    # Four binomial standard errors, and what the law itself may be off by.
    assert abs(missed - law) < 4 * math.sqrt(law * (1 - law) / draws) + 0.03 * (
        1 if law > 0.05 else 0.3
    )
    # The negative control: half an item less or more of precision is told apart where it can be.
    if law > 0.1:
        assert abs(missed - failure_probability(n + 1, eps, target, items)) > 0.03


@pytest.mark.parametrize("items", ["uniform", "product"])
@pytest.mark.parametrize(
    ("n", "eps", "target"), [(8, 0.05, 0.5), (10, 0.1, 0.5), (10, 0.05, 0.5), (9, 0.02, 0.25)]
)
def test_small_probabilities_of_failure(n, eps, target, items, g):
    """Most draws that fail hold too few positive items to reach the target at all."""
    draws = 20_000
    x = draw_items(items, draws, n, generator=g)
    _, error = nearest_subset(x, torch.full((draws,), target))
    missed = float((error > eps).double().mean())
    law = failure_probability(n, eps, target, items)
    noise = math.sqrt(law * (1 - law) / draws)
    assert abs(missed - law) < 0.2 * law + 4 * noise
    short = float((x.clamp(min=0).sum(1) < target - eps).double().mean())
    reached = law_of_sums._unreached(n, target - eps, items)
    assert abs(short - reached) < 4 * noise
    # The negative control: the second term alone, a density without ends.
    if items == "product":
        assert law - reached < 0.5 * missed


@pytest.mark.parametrize("n", [1, 2, 5, 13, 34])
@pytest.mark.parametrize("below", [1e-3, 0.1, 0.37, 0.5])
def test_sums_of_positive_uniforms_are_irwin_halls(n, below):
    """P(Σ max(X, 0) < t) = 2⁻ⁿ Σ_k C(n, k) tᵏ/k! for t ≤ 1."""
    exact = sum(math.comb(n, k) * below**k / math.factorial(k) for k in range(n + 1)) / 2**n
    assert law_of_sums._unreached(n, below, "uniform") == pytest.approx(exact, rel=2e-3)
    one = (1 + below - below * math.log(below)) / 2
    assert law_of_sums._unreached(1, below, "product") == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("items", ["uniform", "product"])
def test_targets_that_no_item_meets_fail_never(items, g):
    assert failure_probability(1, 0.2, 0.2, items) == 0
    assert failure_probability(1, 0.2, -0.1, items) == 0
    x = draw_items(items, 100, 3, generator=g)
    assert float(nearest_subset(x, torch.full((100,), 0.2, dtype=torch.float64))[1].max()) <= 0.2


def test_what_is_promised_fails_no_more_often(g):
    """`items_needed` asks for what δ allows, for products too, of which sets of few sums fail."""
    draws = 8000
    for items in ("uniform", "product"):
        for eps, delta in ((0.1, 0.05), (0.2, 0.05), (0.05, 0.1)):
            n = items_needed(eps, delta, items=items)
            x = draw_items(items, draws, n, generator=g)
            _, error = nearest_subset(x, torch.full((draws,), 0.5))
            missed = float((error > eps).double().mean())
            # What the law may be off by, and 4 standard errors.
            assert missed < 1.2 * delta + 4 * math.sqrt(delta / draws), (items, eps, delta, n)


def test_median_of_errors(g):
    for n in (8, 12, 16):
        _, error = nearest_subset(
            draw_items("uniform", 500, n, generator=g), torch.full((500,), 0.25)
        )
        assert float(error.median()) == pytest.approx(median_error(n, 0.25), rel=0.35)


@pytest.mark.parametrize(
    ("items", "n", "problems", "target"),
    [("uniform", 2, 1, 0.5), ("uniform", 6, 5, 0.5), ("product", 6, 3, 0.25)],
)
def test_all_of_many_problems_lie_below_the_largest_error_half_the_time(items, n, problems, target):
    eps = largest_error(n, problems, items, target=target)
    assert (1 - failure_probability(n, eps, target, items)) ** problems == pytest.approx(0.5)


def test_the_largest_error_is_half_the_interval_where_none_is_reached():
    """A single uniform item lies within 1/2 of 1/2 in half of draws: not for two weights."""
    assert largest_error(1, 2) == 0.5


@pytest.mark.parametrize(
    ("items", "target", "delta", "published"),
    [
        ("uniform", 0.25, 0.1, [6, 10, 13, 17, 23]),
        ("uniform", 0.5, 0.01, [10, 13, 16, 20, 26]),
        ("product", 0.25, 0.1, [6, 9, 13, 16, 23]),
        # With 11 products 7 % of draws do not reach 0.4: `test_small_probabilities_of_failure`.
        ("product", 0.5, 0.01, [16, 17, 18, 20, 27]),
    ],
)
def test_items_needed(items, target, delta, published):
    found = [
        items_needed(eps, delta, items=items, target=target)
        for eps in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
    ]
    assert all(abs(a - b) <= 1 for a, b in zip(found, published, strict=True))
    assert found == sorted(found)
    for eps, n in zip((1e-1, 1e-2), found, strict=False):
        assert failure_probability(n, eps, target, items) <= delta
        assert failure_probability(n - 1, eps, target, items) > delta
        assert n >= least_items(eps)
    assert items_needed(1e-2, delta, 100, items, target=target) > found[1]
    single = single_items_needed(1e-2, delta, target, items)
    assert single > 10 * found[1]  # polynomial against logarithmic


def test_single_items(g):
    """One of M = ln(1/δ)/(2 ε f(w)) items lies within ε of w in all but a share δ of draws."""
    draws, eps, delta = 2000, 0.01, 0.1
    for items, weight in (("uniform", 0.3), ("product", 0.3)):
        m = single_items_needed(eps, delta, weight, items)
        x = draw_items(items, draws, m, generator=g)
        missed = float(((x - weight).abs().min(1).values > eps).double().mean())
        assert abs(missed - delta) < 4 * math.sqrt(delta * (1 - delta) / draws) + 0.01


def test_the_nearest_single_item_or_none(g):
    """None stands for zero; targets lie on both sides of half of an item."""
    items = torch.randn(200, 3, dtype=torch.float64, generator=g)
    targets = torch.randn(200, dtype=torch.float64, generator=g)
    mask, error = nearest_single(items, targets)
    choices = torch.cat([items, torch.zeros(200, 1, dtype=torch.float64)], 1)
    distance, best = (choices - targets[:, None]).abs().min(1)
    assert torch.equal(mask.sum(1) == 0, best == 3)
    assert torch.equal(mask.int().argmax(1)[best < 3], best[best < 3])
    torch.testing.assert_close(error, distance)
    assert 20 < int((best == 3).sum()) < 180


def test_bad_arguments_of_the_law():
    with pytest.raises(ValueError, match=r"`eps` must lie in \(0, 0.5\), got 0.5"):
        items_needed(0.5, 0.1)
    with pytest.raises(ValueError, match=r"`delta` must lie in \(0, 1\), got 1"):
        items_needed(0.1, 1)
    with pytest.raises(ValueError, match=r"`n` must be a whole number in \[1, 34\], got 0"):
        failure_probability(0, 0.1)
    with pytest.raises(ValueError, match=r"`target` must lie in \[−0.5, 0.5\], got 0.7"):
        failure_probability(4, 0.1, 0.7)
    with pytest.raises(ValueError, match="Unknown law of items 'normal'"):
        failure_probability(4, 0.1, items="normal")
    with pytest.raises(ValueError, match="needs more than 34 items"):
        items_needed(1e-9, 0.01, 10**6)
    with pytest.raises(ValueError, match="`weight` must lie in"):
        single_items_needed(0.1, 0.1, 0.0)
