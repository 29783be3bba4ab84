"""Pivotal samples: counts, probabilities, pairs that repel, and sums within their bound."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunus.inclusion import inclusion
from prunus.recipe import Recipe
from prunus.selection import Proportional
from prunus.selection.pivotal import pivotal_sample
from prunus.selection.proportional import systematic_sample
from prunus.theory.gap.shares import drawn_error


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(0, 12), st.integers(0, 9))
def test_the_count_is_exact_and_certain_units_stay(scores, kept, seed):
    kept = min(kept, len(scores))
    odds = inclusion(torch.tensor(scores, dtype=torch.float64), kept, smallest=0.0)
    found = pivotal_sample(odds, kept, generator=generator(seed))
    assert found.tolist() == sorted(set(found.tolist()))
    assert len(found) == kept
    drawn = torch.zeros(len(scores), dtype=torch.bool)
    drawn[found] = True
    assert drawn[odds >= 1].all()
    assert not drawn[odds <= 0].any()


def test_probabilities_hold_and_pairs_repel():
    """Of 3000 draws each unit's count lies within 5.3 deviations (false alarm 1e-6 in all).

    Cov(I_i, I_j) ≤ 0, measured within 4.5 standard errors.
    """
    odds = torch.tensor([0.9, 0.7, 0.5, 0.4, 0.3, 0.2]).double()
    g, draws = generator(), 3000
    drawn = torch.zeros(draws, 6, dtype=torch.float64)
    for row in drawn:
        row[pivotal_sample(odds, 3, generator=g)] = 1.0
    deviation = (odds * (1 - odds) / draws).sqrt()
    assert ((drawn.mean(0) - odds).abs() < 5.3 * deviation).all()
    for i, j in itertools.combinations(range(6), 2):
        together = float((drawn[:, i] * drawn[:, j]).mean())
        both = float(odds[i] * odds[j])
        assert together < both + 4.5 * math.sqrt(both * (1 - both) / draws)
        assert together > 0  # the order is drawn: every pair can occur


@pytest.mark.parametrize("kept", [12, 25])
def test_sums_over_the_draw_stay_within_their_bound(kept):
    """1000 draws at a fixed x: above ε at most δ + 4 SE; the negative control a sixth of ε."""
    g, delta, draws = generator(3), 0.05, 1000
    weight = torch.rand(1, 40, dtype=torch.float64, generator=g) + 0.1
    x = torch.rand(50, 40, dtype=torch.float64, generator=g)
    share = ((weight * x) / (x @ weight[0])[:, None]).amax(0, keepdim=True)
    odds = inclusion(share[0], kept, smallest=0.0)
    eps = float(drawn_error(odds[None], share, weight, delta, sums=1))
    terms = weight[0] * x[0]
    relative = torch.tensor(
        [
            float((terms / odds)[pivotal_sample(odds, kept, generator=g)].sum() / terms.sum()) - 1
            for _ in range(draws)
        ]
    )
    limit = delta + 4 * math.sqrt(delta * (1 - delta) / draws)
    assert float((relative.abs() >= eps).double().mean()) <= limit
    assert float((relative.abs() >= eps / 6).double().mean()) > limit
    assert abs(float(relative.mean())) < 4 * float(relative.std()) / math.sqrt(draws)


@pytest.mark.parametrize("sample", [pivotal_sample, systematic_sample])
def test_a_fixed_size_varies_less_than_draws_with_replacement(sample):
    """At equal numbers of distinct weights: specification 6.2, 600 draws of each."""
    g = generator(5)
    weight = torch.rand(30, dtype=torch.float64, generator=g)
    x = torch.rand(40, 30, dtype=torch.float64, generator=g)
    share = (weight * x / (x @ weight)[:, None]).amax(0)
    q, terms, total = share / share.sum(), weight * x[0], float(x[0] @ weight)
    distinct, with_replacement = [], []
    for _ in range(600):
        drawn = torch.multinomial(q, 24, replacement=True, generator=g)
        distinct.append(len(drawn.unique()))
        with_replacement.append(float((terms / (24 * q))[drawn].sum()) / total)
    kept = round(sum(distinct) / 600)
    odds = inclusion(share, kept, smallest=0.0)
    fixed = [
        float((terms / odds)[sample(odds, kept, generator=g)].sum()) / total for _ in range(600)
    ]
    spread = [torch.tensor(values).var() for values in (fixed, with_replacement)]
    assert float(spread[0]) < float(spread[1])


def test_what_a_design_says_of_itself():
    assert Proportional(design="pivotal").concentrates
    assert not Proportional(design="pivotal", rescaled=False).concentrates
    assert not Recipe().selection.concentrates
    assert repr(Proportional()) == "Proportional(smallest=0.05, rescaled=True)"
    with pytest.raises(ValueError, match="Unknown design of Proportional 'poisson'"):
        Proportional(design="poisson")


def test_where_nearly_all_are_kept_those_without_a_score_fill_up():
    scores = torch.tensor([0.5, 0.25, 0.125, 0.0, 0.0]).double()
    odds = inclusion(scores, 4, smallest=0.0)
    torch.testing.assert_close(odds, torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5]).double())
    uneven = torch.rand(500, dtype=torch.float64, generator=generator(1))
    uneven[::7] = 0
    for kept in range(420, 500, 7):
        odds = inclusion(uneven, kept, smallest=0.0)
        assert float(odds.sum()) == pytest.approx(kept, abs=1e-9)
        for sample in (pivotal_sample, systematic_sample):
            assert len(sample(odds, kept, generator=generator())) == kept
