"""Held-out statements: exact limits, coverage at the stated level, refusal without data."""

import math

import numpy as np
import pytest
import scipy.stats as stats
import torch

from prunus.theory.gap import InSampleWarning
from prunus.theory.gap.from_data import data_statements
from prunus.theory.gap.held_out import (
    clopper_pearson,
    empirical_bernstein,
    exceedance,
    exceedance_everywhere,
    held_out_quantile,
    robustly_unchanged,
    sample_size_for_quantile,
)


def test_reference_limits():
    assert clopper_pearson(0, 300, 0.05) == pytest.approx(0.00993608, rel=1e-6)
    assert clopper_pearson(5, 300, 0.05) == pytest.approx(0.03472224, rel=1e-6)
    assert clopper_pearson(3, 3, 0.05) == 1


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
def test_clopper_pearson_covers_exactly(p):
    """The miss probability, summed over all outcomes; one event fewer would miss more often."""
    n, delta = 60, 0.05
    mass = stats.binom.pmf(np.arange(n + 1), n, p)
    miss = sum(m for k, m in enumerate(mass) if clopper_pearson(k, n, delta) < p)
    assert miss <= delta
    wrong = sum(m for k, m in enumerate(mass) if clopper_pearson(max(k - 1, 0), n, delta) < p)
    if p >= 0.1:  # below, no outcome of 60 trials speaks against p
        assert wrong > delta


def test_quantile_is_the_least_valid_order_statistic():
    n, level, delta = 100, 0.9, 0.05
    g = torch.arange(1.0, n + 1)
    j = int(held_out_quantile(g, level, delta))
    assert stats.binom.cdf(j - 1, n, level) >= 1 - delta
    assert stats.binom.cdf(j - 2, n, level) < 1 - delta
    needed = sample_size_for_quantile(0.99, 0.05)
    assert needed == 299
    with pytest.raises(ValueError, match="take at least 299"):
        held_out_quantile(g, 0.99, 0.05)
    assert held_out_quantile(torch.arange(299.0), 0.99, 0.05) == 298


def test_bernstein_and_massart_cover():
    rng, misses, misses_all = np.random.default_rng(0), 0, 0
    for _ in range(300):
        g = rng.beta(1, 8, 200)
        misses += empirical_bernstein(g, 1.0, 0.05) < 1 / 9
        excess = exceedance_everywhere(g, 0.05)
        ordered = np.sort(g)
        true = 1 - stats.beta.cdf(ordered, 1, 8)
        misses_all += bool((true > (len(g) - np.arange(1, 201)) / 200 + excess).any())
    limit = stats.binom.isf(1e-6, 300, 0.05)
    assert misses <= limit
    assert misses_all <= limit
    assert misses_all > 0  # Massart's constant is sharp: a looser rule would never miss


def test_margins():
    outputs = torch.tensor([[2.0, 0.0], [1.0, 0.9]])
    gaps = torch.tensor([1.0, 1.0])
    assert robustly_unchanged(outputs, gaps).tolist() == [True, False]


def test_statements_divide_delta_by_candidates_and_flag_samples():
    g = torch.Generator().manual_seed(0)
    dense = torch.randn(400, 3, generator=g)
    pruned = dense + 0.01 * torch.randn(400, 3, generator=g)
    one, one_held = data_statements(dense, pruned)
    ten, _ = data_statements(dense, pruned, candidates=10)
    assert ten[0].value > one[0].value
    over = next(s for s in one_held if s.kind == "exceeds")
    # the threshold is read off the same outputs, so the excess of all thresholds at once is paid
    assert over.value == pytest.approx(over.measured + math.sqrt(math.log(20) / 800))
    with pytest.warns(InSampleWarning):
        used, held = data_statements(dense, pruned, in_sample=True)
    assert all(s.in_sample and s.delta == 0 and s.status == "PRED" for s in (*used, *held))
    with pytest.raises(ValueError, match="`dense` is empty"):
        data_statements(dense[:0], pruned[:0])
    with pytest.raises(ValueError, match="`candidates` must"):
        data_statements(dense, pruned, candidates=0)


def test_bad_samples():
    with pytest.raises(ValueError, match="`gaps` is empty"):
        exceedance(torch.zeros(0), 1.0, 0.05)
    with pytest.raises(ValueError, match="needs a finite `largest`"):
        empirical_bernstein(torch.rand(5), float("inf"), 0.05)
    with pytest.raises(ValueError, match=r"`delta` must lie in \(0, 1/2\]"):
        exceedance_everywhere(torch.rand(5), 0.7)
