"""Greedy mode and Poisson approximation against enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from prunus.dpp import KDPP, greedy_map, poisson_odds, poisson_sample
from reference import chi_square, fixture
from reference import dpp as slow


def fixture_kernel():
    return slow.gaussian_edges(fixture.inputs(), fixture.ROW, fixture.BETA, fixture.JITTER)


def test_greedy_order_on_the_fixture():
    assert greedy_map(fixture_kernel(), 6).tolist() == [0, 5, 3, 1, 2, 7]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_takes_the_largest_determinant_each_time(seed):
    x = np.random.default_rng(seed).normal(size=(9, 3))
    kernel = np.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1)) + 0.01 * np.eye(9)
    chosen: list[int] = []
    for _ in range(6):
        rest = [i for i in range(9) if i not in chosen]
        gains = [np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])]) for i in rest]
        chosen.append(rest[int(np.argmax(gains))])
    assert greedy_map(kernel, 6).tolist() == chosen


def test_greedy_ties_and_rank():
    assert greedy_map(np.eye(4), 3).tolist() == [0, 1, 2]
    b = np.random.default_rng(0).normal(size=(8, 3))
    assert len(greedy_map(b @ b.T, 6)) == 3  # nothing more to gain


def conditional_poisson(odds, k):
    sets = list(itertools.combinations(range(len(odds)), k))
    weights = np.array([np.prod(odds[list(s)]) for s in sets])
    return sets, weights / weights.sum()


def test_poisson_samples_follow_the_law():
    odds = 10 ** np.random.default_rng(0).uniform(-1, 1, 8)
    odds[3] = 0.0
    sets, law = conditional_poisson(odds, 4)
    g = torch.Generator().manual_seed(0)
    p = chi_square.p_value(
        lambda: tuple(poisson_sample(odds, 4, generator=g).tolist()), sets, law, 10_000
    )
    assert p > 1e-6, f"p = {p:.2g}; a right sampler fails once in 10⁶ seeds"
    assert poisson_sample(odds, 7, generator=g).tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert poisson_sample(odds, 0, generator=g).tolist() == []


def test_poisson_is_the_k_dpp_of_a_diagonal_kernel():
    odds = np.array([0.2, 1.0, 3.0, 0.7, 0.1])
    _, law = conditional_poisson(odds, 2)
    np.testing.assert_allclose(law, slow.k_dpp(np.diag(odds), 2), rtol=1e-12)


@pytest.mark.parametrize("start", [None, -20.0, 20.0])
def test_poisson_odds_have_the_size_and_the_marginals(start):
    x = np.random.default_rng(1).normal(size=(120, 3))
    kernel = np.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1)) + 0.01 * np.eye(120)
    for k in (12, 60, 108):
        odds, log_alpha = poisson_odds(kernel, k, log_alpha=start)
        marginal = odds / (1 + odds)
        assert float(marginal.sum()) == pytest.approx(k, rel=5e-3)
        eye = np.eye(120)
        exact = eye - np.linalg.inv(eye + math.exp(log_alpha) * kernel)
        # single precision of a well-conditioned inverse
        torch.testing.assert_close(
            marginal, torch.tensor(exact.diagonal().copy()), atol=1e-4, rtol=0
        )
        # the marginals of the k-DPP itself are near: 120 items leave O(1/k) between them
        assert float((marginal - KDPP(kernel).inclusion(k)).abs().max()) < 0.02


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e40, 1e300])
def test_the_kernel_s_scale_does_not_matter(scale):
    """k-DPPs of L and of cL are one law, and so are their Poisson approximations."""
    x = np.random.default_rng(2).normal(size=(60, 3))
    kernel = np.exp(-0.5 * ((x[:, None] - x) ** 2).sum(-1)) + 0.01 * np.eye(60)
    odds, log_alpha = poisson_odds(kernel, 20)
    scaled, shifted = poisson_odds(kernel * scale, 20, log_alpha=log_alpha - math.log(scale))
    assert shifted + math.log(scale) == pytest.approx(log_alpha, abs=0.02)
    # both sizes are met to 5e-3, and marginals run along with them
    torch.testing.assert_close(scaled / (1 + scaled), odds / (1 + odds), atol=5e-3, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_rare_items_keep_positive_odds(seed):
    """Rows over eleven decades of length: 1 − π rounds to one, or above it, in single precision."""
    rng = np.random.default_rng(seed)
    b = rng.normal(size=(560, 3)) * np.exp(rng.uniform(-8, 3, (560, 1)))
    odds, log_alpha = poisson_odds(b @ b.T, 2)
    assert (odds > 0).all()
    alone = math.exp(log_alpha) * torch.tensor((b * b).sum(1))
    assert (odds <= alone * (1 + 1e-6)).all()  # π ≤ αL/(1 + αL), in single precision
    assert len(poisson_sample(odds, 2, generator=torch.Generator().manual_seed(seed))) == 2


def test_bad_input():
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"`odds` must be >= 0, got -1 at item 2"):
        poisson_sample([1.0, 1.0, -1.0], 2, generator=g)
    with pytest.raises(ValueError, match="k=3 exceeds the 2 items with positive odds"):
        poisson_sample([1.0, 1.0, 0.0], 3, generator=g)
    with pytest.raises(ValueError, match=r"`odds` must be finite, got inf at index \[0\]"):
        poisson_sample([math.inf, 1.0], 1, generator=g)
    with pytest.raises(ValueError, match="No scaling of the kernel gives an expected size of 5"):
        poisson_odds(np.ones((8, 8)), 5)
    with pytest.raises(ValueError, match="positive trace, got a kernel of zeros"):
        poisson_odds(np.zeros((8, 8)), 5)
    with pytest.raises(ValueError, match=r"`k` must be a whole number in \[0, 8\], got 9"):
        greedy_map(np.eye(8), 9)
