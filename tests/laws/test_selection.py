"""The laws of selection rules, over the whole table."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laws.families import class_group, instances, linear_layer
from prunus.budget import count_of
from prunus.granularity import NM, Node
from prunus.inclusion import inclusion
from prunus.layer import Layer
from prunus.parts import EDGES
from prunus.ranking import FEW
from prunus.recipe import Recipe
from prunus.rng import generator_for
from prunus.selection import SELECTIONS, Proportional, top_k_mask
from prunus.selection.proportional import by_strata, systematic_sample

RULES = instances(SELECTIONS)
LAYER = linear_layer()
POOLS, UNITS = LAYER.weight.shape
GROUP = class_group(POOLS, UNITS)
each = pytest.mark.parametrize("name", RULES)


def choose(name, scores, kept, seed=0):
    layer = LAYER if EDGES in RULES[name].serves else GROUP
    return RULES[name](scores, kept, layer=layer, generator=generator_for(seed, "fc"))


counts = st.lists(st.integers(0, UNITS), min_size=POOLS, max_size=POOLS).map(torch.tensor)
ties = st.lists(st.integers(0, 3), min_size=POOLS * UNITS, max_size=POOLS * UNITS).map(
    lambda v: torch.tensor(v, dtype=torch.float64).view(POOLS, UNITS)
)


@each
@given(kept=counts, scores=ties, seed=st.integers(0, 9))
@settings(max_examples=15)
def test_exact_counts_even_with_ties_and_nothing_else_changes(name, kept, scores, seed):
    before = scores.clone(), kept.clone(), LAYER.weight.clone(), LAYER.gram.clone()
    state = torch.get_rng_state()
    choice = choose(name, scores, kept, seed)
    assert choice.mask.dtype == torch.bool
    assert torch.equal(choice.mask.sum(1), kept)
    again = choose(name, scores, kept, seed)
    assert torch.equal(choice.mask, again.mask)
    for old, new in zip(before, (scores, kept, LAYER.weight, LAYER.gram), strict=True):
        assert torch.equal(old, new)
    assert torch.equal(state, torch.get_rng_state())


@each
@pytest.mark.parametrize("density", [0.9, 1.0, 0.001, 0.1])
@pytest.mark.parametrize("scores", [torch.ones(POOLS, UNITS), torch.zeros(POOLS, UNITS)])
def test_densities_and_equal_scores(name, density, scores):
    kept = torch.full((POOLS,), count_of(density, UNITS))
    assert choose(name, scores, kept).mask.sum(1).tolist() == kept.tolist()


@each
def test_units_that_an_earlier_step_removed_stay_removed(name):
    scores = torch.rand(POOLS, UNITS)
    scores[:, [1, 4, 7]] = -torch.inf
    for seed in range(5):
        mask = choose(name, scores, torch.full((POOLS,), UNITS - 4), seed).mask
        assert not mask[:, [1, 4, 7]].any()


@each
def test_only_random_rules_follow_the_seed(name):
    scores, kept = torch.rand(POOLS, UNITS), torch.full((POOLS,), UNITS // 2)
    masks = [choose(name, scores, kept, seed).mask for seed in range(8)]
    # eight draws of six rows of 924 sets each are all alike with probability below 1e-100
    assert any(not torch.equal(masks[0], m) for m in masks) == RULES[name].random


@each
@given(order=st.permutations(range(UNITS)), k=st.integers(0, UNITS))
@settings(max_examples=15)
def test_permuting_units_with_distinct_scores_permutes_the_answer(name, order, k):
    if RULES[name].random:
        return  # a statement about probabilities, which the rule's own tests make
    scores = torch.rand(POOLS, UNITS, generator=generator_for(1, "scores"))
    kept = torch.full((POOLS,), k)
    if torch.equal(choose(name, scores, kept).mask, choose(name, -scores, kept).mask) and k % UNITS:
        return  # it reads the layer and no scores; its own tests permute that
    mask, moved = choose(name, scores, kept).mask, choose(name, scores[:, order], kept).mask
    assert torch.equal(mask[:, order], moved)


@each
def test_bad_counts(name):
    scores = torch.rand(POOLS, UNITS)
    for wrong, shown in ((UNITS + 1, f"{UNITS + 1} to {UNITS + 1}"), (-1, "-1 to -1")):
        message = (
            f"`kept` must lie in [0, {UNITS}], the pool size, got values from {shown}. Take it "
            f"from an allocation."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            choose(name, scores, torch.full((POOLS,), wrong))


@given(scores=ties, kept=counts | st.integers(0, UNITS).map(lambda k: torch.tensor([k] * POOLS)))
def test_top_k_takes_the_best_and_of_equals_the_first(scores, kept):
    for many in (1, FEW):  # few pools are ranked one by one, many at once
        pools, counts = scores.repeat(many, 1), kept.repeat(many)
        mask = top_k_mask(pools, counts)
        for row, own, k in zip(pools.tolist(), mask.tolist(), counts.tolist(), strict=True):
            best = sorted(range(UNITS), key=lambda i: (-row[i], i))[:k]
            assert {i for i in range(UNITS) if own[i]} == set(best)


@pytest.mark.parametrize("kept", [[2, 2], [2, 3]])  # equal counts are selected without sorting
def test_top_k_of_infinite_scores_and_nan(kept):
    inf, nan = math.inf, math.nan
    scores = torch.tensor([[-inf, 1.0, inf, inf, -inf], [-inf, nan, -inf, -inf, -inf]])
    mask = top_k_mask(scores, torch.tensor(kept))
    assert mask[0].tolist() == [False, False, True, True, False]
    assert mask[1].tolist() == [True, True, kept[1] == 3, False, False]


def test_top_k_of_empty_pools():
    for shape in ((0, 3), (2, 0)):
        mask = top_k_mask(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long))
        assert mask.shape == shape
        assert mask.dtype == torch.bool


def test_random_draws_are_uniform_and_rescaling_is_unbiased():
    from prunus.selection import RandomK
    from reference.chi_square import p_value

    generator = generator_for(3, "draws")
    rule, scores = RandomK(rescaled=True), torch.zeros(1, 5)
    kept = torch.tensor([2])
    from itertools import combinations

    import numpy as np

    cells = list(combinations(range(5), 2))

    def draw():
        mask = rule(scores, kept, layer=LAYER, generator=generator).mask[0]
        return tuple(mask.nonzero().flatten().tolist())

    p = p_value(draw, cells, np.full(10, 0.1), 4000)
    assert p > 1e-6, f"uniform draws rejected with p = {p:.2g}; false alarm probability 1e-6"
    skewed = np.full(10, 0.1) + np.array([0.03, -0.03] * 5)
    assert p_value(draw, cells, skewed, 4000) < 1e-6  # the same test rejects a wrong law
    choice = rule(scores, kept, layer=LAYER, generator=generator)
    assert torch.equal(choice.scale, torch.full((1, 5), 2.5))
    assert float((choice.scale * choice.mask).sum()) == 5.0


def test_inclusion_is_the_clamped_proportion():
    scores = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.0, -torch.inf], dtype=torch.float64)
    p = inclusion(scores, 3, smallest=0.1)
    assert float(p.sum()) == pytest.approx(3, abs=1e-12)
    assert p[0] == 1
    assert p[-1] == 0
    assert float(p[-2]) == pytest.approx(0.1)
    inner = (p > 0.1 + 1e-12) & (p < 1)
    ratio = p[inner] / scores[inner]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    # least Σ s² (1/π − 1) among probabilities of that sum and floor: moving mass only raises it
    s2 = scores[:6].square()
    best = float((s2 * (1 / p[:6] - 1)).sum())
    for i, j in ((1, 2), (2, 1), (3, 1), (1, 3), (2, 3)):
        moved = p[:6].clone()
        moved[i] += 0.02
        moved[j] -= 0.02
        if moved[i] <= 1 and moved[j] >= 0.1:
            assert float((s2 * (1 / moved - 1)).sum()) > best


def test_proportional_draws_keep_their_odds_and_are_unbiased():
    generator = generator_for(5, "draws")
    scores = torch.tensor([[5.0, 3.0, 2.0, 1.0, 1.0, 0.2]], dtype=torch.float64)
    kept, draws = torch.tensor([3]), 6000
    odds = inclusion(scores[0], 3)
    counts = torch.zeros(6, dtype=torch.float64)
    total = torch.zeros(6, dtype=torch.float64)
    for _ in range(draws):
        choice = Proportional()(scores, kept, layer=LAYER, generator=generator)
        counts += choice.mask[0]
        total += choice.mask[0] * choice.scale[0]
    torch.testing.assert_close(choice.scale[0], 1 / odds)
    deviation = (draws * odds * (1 - odds)).sqrt()
    error = (counts - draws * odds).abs()
    # six binomial counts; each beyond 5.3 deviations has probability 1.2e-7, together < 1e-6
    assert (error <= 5.3 * deviation + 1e-9).all()
    wrong = inclusion(scores[0] ** 0.8, 3)  # the same test rejects slightly other odds
    assert ((counts - draws * wrong).abs() > 5.3 * (draws * wrong * (1 - wrong)).sqrt()).any()
    torch.testing.assert_close(total / draws, torch.ones(6, dtype=torch.float64), atol=0.1, rtol=0)


def signed_layer(weights):
    return Layer(name="fc", weight=torch.as_tensor(weights, dtype=torch.float64))


def test_without_a_floor_zero_scores_are_kept_only_where_nothing_else_is_left():
    scores = torch.tensor([[4.0, 0.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
    rule = Proportional(smallest=0)
    for seed in range(20):
        generator = generator_for(seed, "draw")
        choice = rule(scores, torch.tensor([2]), layer=signed_layer(scores), generator=generator)
        assert not choice.mask[0, [1, 3]].any()
        full = rule(scores, torch.tensor([4]), layer=signed_layer(scores), generator=generator)
        assert full.mask[0, [0, 2, 4]].all()
        assert int(full.mask.sum()) == 4
        torch.testing.assert_close(full.scale[0, [1, 3]], torch.full((2,), 2.0).double())
    with pytest.raises(ValueError, match=r"^`smallest` must lie in \[0, 1\], got -0\.1"):
        Proportional(smallest=-0.1)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=9),
    st.integers(0, 9),
    st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_strata_have_exact_counts_and_whole_expectations(weights, k, gone):
    w = torch.tensor([weights], dtype=torch.float64)
    k = min(k, len(weights))
    scores = w.abs().masked_fill(torch.tensor([gone[: len(weights)]]), -torch.inf)
    odds, first = by_strata(scores[0], k, w[0] >= 0, smallest=0.0)
    assert float(odds.sum()) == pytest.approx(k)
    assert float(odds[w[0] >= 0].sum()) == pytest.approx(first)
    rule = Proportional(smallest=0, by_sign=True)
    choice = rule(
        scores, torch.tensor([k]), layer=signed_layer(w), generator=generator_for(0, "draw")
    )
    assert int(choice.mask.sum()) == k
    assert int(choice.mask[w >= 0].sum()) == first


def test_draws_by_sign_are_unbiased_and_vary_less_than_one_draw_of_both():
    """Σ kept w / π over draws: mean Σ w within 4.9 standard errors (false alarm 1e-6)."""
    w = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, -1.5, -2.5, -3.5, -4.5, -0.5]]).double()
    uneven = torch.tensor([[1.0, 0.7, 1.3, 0.9, 1.2, 1.1, 0.8, 1.0, 1.3, 0.7]]).double()
    scores, side, draws = (w.abs() * uneven)[0], w[0] >= 0, 3000
    rule = Proportional(smallest=0, by_sign=True)
    first = rule(
        scores[None], torch.tensor([4]), layer=signed_layer(w), generator=generator_for(1, "draw")
    )
    odds, positive = by_strata(scores, 4, side, smallest=0)
    torch.testing.assert_close(first.scale[0], 1 / odds)
    spread = {}
    for strata in ((torch.ones(10, dtype=torch.bool),), (side, ~side)):
        own = odds if len(strata) == 2 else inclusion(scores, 4, smallest=0)
        counts = (positive, 4 - positive) if len(strata) == 2 else (4,)
        generator = generator_for(1, "draws")
        sums = []
        for _ in range(draws):
            total = 0.0
            for part, count in zip(strata, counts, strict=True):
                drawn = systematic_sample(own[part], count, generator=generator)
                total += float((w[0][part] / own[part])[drawn].sum())
            sums.append(total)
        found = torch.tensor(sums, dtype=torch.float64)
        spread[len(strata) == 2] = float(found.var())
        error = abs(float(found.mean()) - float(w.sum()))
        assert error < 4.9 * float(found.std()) / draws**0.5
    assert spread[True] < 0.5 * spread[False]


@pytest.mark.parametrize(("kept", "first"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (6, 4)])
def test_strata_keep_the_nearest_whole_number_to_what_is_expected(kept, first):
    """Five of eight equal units: 5/8 of those kept, and no side with scores stays empty."""
    side = torch.arange(8) < 5
    odds, own = by_strata(torch.ones(8, dtype=torch.float64), kept, side, smallest=0.0)
    assert own == first
    assert float(odds[side].sum()) == pytest.approx(first)
    assert float(odds[~side].sum()) == pytest.approx(kept - first)


def test_a_side_of_one_score_keeps_one_and_a_side_without_any_none():
    scores = torch.tensor([5.0, 4.0, 3.0, 0.0, 0.1, 0.0], dtype=torch.float64)
    for side, first in (([0, 1, 2], 2), ([3, 4, 5], 1), ([3, 5], 0)):
        stratum = torch.zeros(6, dtype=torch.bool)
        stratum[side] = True
        assert by_strata(scores, 3, stratum, smallest=0.0)[1] == first
    gone = torch.tensor([1.0, 1.0, -torch.inf, -torch.inf, 1.0, 1.0], dtype=torch.float64)
    odds, own = by_strata(gone, 4, torch.arange(6) < 3, smallest=0.0)
    assert own == 2
    assert odds.tolist() == [1, 1, 0, 0, 1, 1]


def test_strata_by_sign_need_units_with_a_sign():
    for granularity in (Node(), NM(2, 4)):
        with pytest.raises(ValueError, match="draws positive and negative weights apart, so"):
            Recipe(granularity=granularity, selection=Proportional(by_sign=True))
    with pytest.raises(ValueError, match=r"^`by_sign` must be True or False, got 1\.$"):
        Proportional(by_sign=1)
    assert repr(Proportional()) == "Proportional(smallest=0.05, rescaled=True)"
    assert repr(Proportional(by_sign=True)).endswith("rescaled=True, by_sign=True)")


def test_every_pair_of_a_systematic_sample_can_occur():
    """The order is drawn: of four units at 1/2 all six pairs come, each in a sixth of the draws.

    In a fixed order two pairs come. A pair of probability 1/6 is outside 100 ± 45 of 600 draws
    (4.9 standard deviations) in less than one of 100 000 runs.
    """
    generator = torch.Generator().manual_seed(0)
    half = torch.full((4,), 0.5, dtype=torch.float64)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(600):
        pair = tuple(systematic_sample(half, 2, generator=generator).tolist())
        seen[pair] = seen.get(pair, 0) + 1
    assert len(seen) == 6
    assert all(55 <= count <= 145 for count in seen.values())
