"""Golden intervals, the number of samples, and what greedy decompositions leave."""

import math

import pytest
import torch

from prunus.theory.logarithmic import (
    GOLDEN,
    decompose,
    golden_intervals,
    golden_pieces,
    hyperbolic,
    samples_needed,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_any_sample_of_the_interval_leaves_what_the_next_one_takes():
    """r in (γ^(k+1), γ^k] less v in [γ^(k+2), γ^(k+1)] is in [0, γ^(k+1)], both ends attained."""
    g = generator()
    for k in range(12):
        r = (
            GOLDEN ** (k + 1)
            + (GOLDEN**k - GOLDEN ** (k + 1)) * torch.rand(200, generator=g).double()
        )
        v = (
            GOLDEN ** (k + 2)
            + (GOLDEN ** (k + 1) - GOLDEN ** (k + 2)) * torch.rand(200, generator=g).double()
        )
        left = r - v
        assert bool((left >= 0).all())
        assert bool((left <= GOLDEN ** (k + 1) + 1e-15).all())
        assert GOLDEN**k - GOLDEN ** (k + 2) == pytest.approx(GOLDEN ** (k + 1), abs=1e-15)


@pytest.mark.parametrize(("eps", "pieces", "samples"), [
    (0.1, 5, 20), (0.01, 10, 47), (0.001, 15, 76), (0.0001, 20, 106),
])  # fmt: skip
def test_counts(eps, pieces, samples):
    assert golden_pieces(eps) == pieces
    assert abs(samples_needed(eps, 0.1) - samples) <= 1
    intervals = golden_intervals(eps)
    assert intervals.shape == (pieces, 2)
    assert float(intervals[-1, 0]) <= eps * GOLDEN + 1e-12
    torch.testing.assert_close(intervals[1:, 1], intervals[:-1, 0])


def test_one_sample_of_each_interval_is_enough():
    """The worst case: every sample at the low end, or at the high end, of its interval."""
    targets = torch.linspace(0, 1, 1001).double()
    for eps in (0.1, 0.01, 0.003):
        for end in (0, 1):
            samples = golden_intervals(eps)[:, end]
            for rule in ("interval", "largest"):
                found = decompose(samples, targets, eps, rule=rule)
                assert bool(found.met.all()), (eps, end, rule)
                sums = (found.mask * samples).sum(1)
                torch.testing.assert_close(sums + found.residual, targets, atol=1e-12, rtol=0)
                assert bool((found.residual >= 0).all())
                assert int(found.mask.sum(1).max()) <= golden_pieces(eps)
    missing = golden_intervals(0.01)[[0, 1, 2, 4, 5, 6, 7, 8, 9], 0]  # the negative control
    assert not bool(decompose(missing, targets, 0.01, rule="interval").met.all())


@pytest.mark.parametrize("eps", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_failures_stay_below_delta(eps, delta):
    g, draws = generator(2), 300
    count, missed = samples_needed(eps, delta), {"interval": 0, "largest": 0}
    for _ in range(draws):
        samples, weight = hyperbolic(count, eps, generator=g), torch.rand(1, generator=g).double()
        for rule in missed:
            missed[rule] += int(not decompose(samples, weight, eps, rule=rule).met[0])
    reach = delta * draws + 4 * math.sqrt(delta * (1 - delta) * draws)
    assert missed["largest"] <= missed["interval"] <= reach
    few = sum(
        not bool(decompose(hyperbolic(golden_pieces(eps) // 2, eps, generator=g), [0.99], eps).met)
        for _ in range(100)
    )
    assert few > 50  # the negative control: half a sample per interval fails


def test_one_pool_for_many_weights_each_sample_used_once():
    g = generator(4)
    weights = torch.rand(50, generator=g).double()
    count = samples_needed(0.01, 0.1, 50)
    assert count / 50 < samples_needed(0.01, 0.1)
    found = decompose(hyperbolic(count, 0.01, generator=g), weights, 0.01, shared=False)
    assert bool(found.met.all())
    assert int(found.mask.sum(0).max()) == 1
    again = decompose(hyperbolic(60, 0.01, generator=g), weights, 0.01)
    assert bool(again.met.all())
    assert int(again.mask.sum(0).max()) > 1
    assert samples_needed(0.01, 0.1, 50, shared=True) == samples_needed(0.01, 0.1)


def test_hyperbolic_samples_hit_each_interval_alike():
    draws = 20_000
    samples = hyperbolic(draws, 0.01, generator=generator(5))
    intervals = golden_intervals(0.01)
    counts = torch.stack([((samples >= a) & (samples <= b)).sum() for a, b in intervals]).double()
    expected = draws / len(intervals)
    # Chi-square with 9 degrees of freedom: 50 is exceeded with probability 1e-7.
    assert float((counts - expected).square().sum() / expected) < 50
    uniform = torch.rand(draws, generator=generator(6)).double()
    other = torch.stack([((uniform >= a) & (uniform <= b)).sum() for a, b in intervals]).double()
    assert float((other - expected).square().sum() / expected) > 1000  # the negative control


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: golden_pieces(0.5), r"`eps` must lie in \(0, 0.5\), got 0.5"),
        (lambda: samples_needed(0.1, 0), r"`delta` must lie in \(0, 1\), got 0"),
        (lambda: decompose([0.5], [1.5], 0.1), r"`targets` must lie in \[0, 1\], got 1.5"),
        (lambda: decompose([0.5], [-0.5], 0.1), "pass the size of negative ones"),
        (lambda: decompose([0.0], [0.5], 0.1), "`samples` must be positive"),
        (lambda: decompose([0.5], [math.nan], 0.1), "`targets` must be finite"),
        (lambda: decompose([0.5], [0.5], 0.1, rule="smallest"), "Unknown rule 'smallest'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
