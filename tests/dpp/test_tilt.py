"""Sizes and eigenvector choices where elementary symmetric polynomials leave float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from prunus.dpp import tilt
from reference import chi_square, fixture
from reference import dpp as slow

# name: (log10 of the eigenvalues, size); the first spans 400 decades
STRESS = {
    "400 decades": (np.linspace(-200, 200, 1000), 500),
    "all equal": (np.zeros(10_000), 5_000),
    "one huge": (np.r_[12.0, np.full(999, -9.0)], 300),
    "k = 1": (np.linspace(-5, 5, 300), 1),
    "k = n - 1": (np.linspace(-5, 5, 300), 299),
    "rank one and jitter": (np.r_[math.log10(750), np.full(783, -2.0)], 706),
}


@pytest.mark.parametrize("name", STRESS)
def test_stress_spectra_stay_finite(name):
    decades, size = STRESS[name]
    logs = decades * math.log(10)
    x = tilt.tilt(logs, size)
    p, q = tilt.coins(logs, x)
    assert math.isfinite(x)
    assert float(p.sum()) == pytest.approx(size, rel=1e-8)
    chosen, tries = tilt.draw_by_rejection(p, size, torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == size
    assert tries <= 40 * (1 + math.sqrt(2 * math.pi * float((p * q).sum())))  # P(more) < e⁻⁴⁰
    assert math.isfinite(tilt.log_elementary(logs, size))
    if len(logs) <= 1000:
        single = tilt.single_probabilities(logs, size)
        assert float(single.sum()) == pytest.approx(size, rel=1e-10)
        assert len(tilt.draw_by_table(p, q, size, torch.Generator().manual_seed(0))) == size


def test_closed_forms():
    for n, k in ((30, 12), (2000, 700)):
        expected = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        got = tilt.log_elementary(np.full(n, math.log(3e-7)), k)
        assert got == pytest.approx(expected + k * math.log(3e-7), rel=1e-12)
    # one huge eigenvalue is certain; the others share the k − 1 places left evenly
    single = tilt.single_probabilities(np.r_[12.0, np.full(999, -9.0)] * math.log(10), 300)
    assert single[0] == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(single[1:], 299 / 999, rtol=1e-10)


def test_fixture_tilt():
    x = fixture.inputs()
    kernel = slow.gaussian_edges(x, fixture.ROW, fixture.BETA, fixture.JITTER)
    logs = np.log(np.linalg.eigvalsh(kernel))
    alpha = tilt.tilt(logs, 3)
    p, q = tilt.coins(logs, alpha)
    assert math.exp(alpha) == pytest.approx(0.7663700645, abs=1e-8)
    assert tilt.size_table(p, q, 3)[8, 3] == pytest.approx(0.3053384226, abs=1e-8)


def enumerated(values, k):
    sets = list(itertools.combinations(range(len(values)), k))
    weights = np.array([np.prod(values[list(s)]) for s in sets])
    return sets, weights / weights.sum(), weights.sum()


@pytest.mark.parametrize(("seed", "k"), [(0, 1), (1, 2), (2, 4), (3, 7)])
def test_equals_enumeration(seed, k):
    values = 10 ** np.random.default_rng(seed).uniform(-3, 3, 8)
    sets, law, total = enumerated(values, k)
    logs = np.log(values)
    assert tilt.log_elementary(logs, k) == pytest.approx(math.log(total), abs=1e-12)
    pairs = np.zeros((8, 8))
    for s, weight in zip(sets, law, strict=True):
        pairs[np.ix_(s, s)] += weight
    np.testing.assert_allclose(tilt.single_probabilities(logs, k), pairs.diagonal(), rtol=1e-11)
    np.fill_diagonal(pairs, 0.0)
    np.testing.assert_allclose(tilt.pair_probabilities(logs, k), pairs, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("by", ["rejection", "table"])
def test_draws_follow_the_law(by):
    values = 10 ** np.random.default_rng(4).uniform(-1, 1, 7)
    sets, law, _ = enumerated(values, 3)
    logs, g = np.log(values), torch.Generator().manual_seed(1)
    p, q = tilt.coins(logs, tilt.tilt(logs, 3))

    def draw():
        if by == "rejection":
            return tuple(tilt.draw_by_rejection(p, 3, g)[0].tolist())
        return tuple(tilt.draw_by_table(p, q, 3, g).tolist())

    value = chi_square.p_value(draw, sets, law, 10_000)
    assert value > 1e-6, f"p = {value:.2g}; a right sampler fails once in 10⁶ seeds"


def test_the_law_does_not_depend_on_the_tilt():
    """A tilt that is off costs tries, not exactness."""
    values = 10 ** np.random.default_rng(5).uniform(-1, 1, 7)
    sets, law, _ = enumerated(values, 3)
    logs, g = np.log(values), torch.Generator().manual_seed(2)
    p, _ = tilt.coins(logs, tilt.tilt(logs, 3) + 0.7)
    value = chi_square.p_value(
        lambda: tuple(tilt.draw_by_rejection(p, 3, g)[0].tolist()), sets, law, 10_000
    )
    assert value > 1e-6, f"p = {value:.2g}; a right sampler fails once in 10⁶ seeds"


def test_expected_tries():
    """At most about 1.26 √n of them: 35 at n = 784."""
    p = np.full(784, 0.5)
    g = torch.Generator().manual_seed(0)
    tries = [tilt.draw_by_rejection(p, 392, g)[1] for _ in range(400)]
    expected = math.sqrt(2 * math.pi * 784 / 4)
    # geometric: standard error expected / 20; 6 of them
    assert np.mean(tries) == pytest.approx(expected, abs=6 * expected / 20)
