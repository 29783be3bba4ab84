"""The k-DPP against enumeration where slips would show: uneven diagonals, floors, thresholds."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from prunus.dpp import KDPP, greedy_map, poisson_odds
from prunus.dpp.cholesky import eliminate, largest, smallest_loss

UNEVEN = torch.diag(torch.tensor([1.0, 30.0, 0.01, 5.0, 0.2], dtype=torch.float64))


def kernel(rank):
    draw = torch.Generator().manual_seed(rank)
    features = torch.randn(5, rank, dtype=torch.float64, generator=draw)
    root = UNEVEN.sqrt()
    return root @ features @ features.T @ root


def enumerated(matrix, k):
    """P(S) ∝ det L_S of every set of k items."""
    sets = list(itertools.combinations(range(len(matrix)), k))
    weight = np.array([np.linalg.det(matrix[np.ix_(s, s)]) for s in sets])
    return sets, weight / weight.sum(), math.log(weight.sum())


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("rank", [2, 5])
def test_every_probability_by_enumeration(rank, k):
    """Above the rank the kernel is lifted by the floor times the mean of its uneven diagonal."""
    matrix, floor = kernel(rank), 0.01
    process = KDPP(matrix, floor=floor)
    lift = floor * float(matrix.diagonal().mean()) if k > rank else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if k > rank else "error")
        sets, chance, total = enumerated(matrix.numpy() + lift * np.eye(5), k)
        for s, p in zip(sets, chance, strict=True):
            assert math.exp(process.log_prob(s)) == pytest.approx(p, rel=1e-7, abs=1e-12)
        assert process.log_normaliser(k) == pytest.approx(total, abs=1e-8)
        pairs = process.pair_inclusion(k)
        for i, j in itertools.product(range(5), repeat=2):
            both = sum(p for s, p in zip(sets, chance, strict=True) if i in s and j in s)
            assert float(pairs[i, j]) == pytest.approx(both, rel=1e-7, abs=1e-9)
        torch.testing.assert_close(process.inclusion(k), pairs.diagonal().clone())
        torch.testing.assert_close(pairs.sum(1), k * pairs.diagonal())


def test_the_greedy_search_stops_at_the_residual_it_names():
    """Items 1 and 2 add 2e-10 and 5e-11 to the determinant's factors, about the default 1e-10."""
    matrix = torch.diag(torch.tensor([1.0, 2e-10, 5e-11], dtype=torch.float64))
    assert greedy_map(matrix, 3).tolist() == [0, 1]
    assert greedy_map(matrix, 3, least=1e-12).tolist() == [0, 1, 2]
    assert greedy_map(matrix, 3, least=1e-9).tolist() == [0]


def test_poisson_odds_are_those_of_the_marginals():
    """π = diag αL (I + αL)⁻¹ at the α that is returned, whose sum is k."""
    matrix = kernel(5)
    odds, log_alpha = poisson_odds(matrix, 2, accuracy=1e-6)
    scaled = math.exp(log_alpha) * matrix
    present = torch.linalg.solve(torch.eye(5, dtype=torch.float64) + scaled, scaled).diagonal()
    # The factorisation may be in float32, whose unit is 6e-8.
    torch.testing.assert_close(odds / (1 + odds), present, rtol=1e-5, atol=1e-6)
    assert float(present.sum()) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("compact", [None, 1, 3, 12])
@pytest.mark.parametrize("rule", ["loss", "largest"])
def test_elimination_is_a_chain_of_schur_complements(rule, compact):
    """However often the eliminated items are dropped on the way."""
    rng = np.random.default_rng(0)
    factor, carried = rng.standard_normal((12, 20)), rng.standard_normal(12)
    kernel = factor @ factor.T
    rest, w, left, expected = kernel.copy(), carried.copy(), list(range(12)), []
    for step in range(9):
        worth = {p: w[p] ** 2 / rest[p, p] if rule == "loss" else -rest[p, p] for p in left}
        p = min(left, key=worth.__getitem__)
        expected.append((step, p, rest[p, p], w[p]))
        w = w - rest[:, p] * w[p] / rest[p, p]
        rest = rest - np.outer(rest[:, p], rest[p]) / rest[p, p]
        left.remove(p)
    found = []
    pick = smallest_loss() if rule == "loss" else largest()
    before = kernel.copy(), carried.copy()
    order = eliminate(
        kernel, 9, pick, carry=carried, compact=compact, record=lambda *row: found.append(row[:4])
    )
    assert order.tolist() == [row[1] for row in found] == [row[1] for row in expected]
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-9)
    assert np.array_equal(kernel, before[0])
    assert np.array_equal(carried, before[1])
    if rule == "largest" and compact is None:
        assert eliminate(None, 9, pick, factor=factor).tolist() == order.tolist()
