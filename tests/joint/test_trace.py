"""The left-looking elimination against the textbook loop, and what its traces promise."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.compensation.least_squares import least_squares
from prunus.elimination import damped_inverse, global_counts, obs_masks, obs_trace
from reference import fixture
from reference import obs as slow


def layer(seed=0, rows=4, n=20, samples=60):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, n)) @ rng.normal(size=(n, n)) + 1.0
    return torch.tensor(rng.normal(size=(rows, n))), torch.tensor(x.T @ x / samples)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_fixture_order(ridge):
    x = fixture.inputs()
    trace = obs_trace(torch.tensor(fixture.ROW)[None], torch.tensor(x.T @ x / 64), ridge=ridge)
    assert trace.order[0, :7].tolist() == [6, 4, 2, 1, 5, 0, 7]
    assert trace.mask(torch.tensor([4]))[0].nonzero().flatten().tolist() == [0, 3, 5, 7]


def test_fixture_mask_is_the_best_of_all_seventy():
    import itertools

    x = fixture.inputs()
    gram, w = torch.tensor(x.T @ x), torch.tensor(fixture.ROW)[None]
    errors = {}
    for kept in itertools.combinations(range(8), 4):
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[0, list(kept)] = True
        errors[kept] = float(least_squares(w, gram, mask, solver="pinv").after)
    assert min(errors, key=errors.__getitem__) == (0, 3, 5, 7)


@pytest.mark.parametrize(("seed", "n", "compact"), [(0, 20, 64), (1, 70, 16), (2, 130, 64)])
def test_equals_the_textbook_loop(seed, n, compact, monkeypatch):
    from prunus import elimination as module

    monkeypatch.setattr(module, "_COMPACT", compact)
    w, gram = layer(seed, rows=2, n=n, samples=3 * n)
    trace = obs_trace(w, gram, ridge=1e-4)
    for h in range(2):
        order, losses, _ = slow.eliminate(w[h].numpy(), gram.numpy(), 1e-4, n)
        assert trace.order[h].tolist() == order
        # the reference downdates a full inverse, which loses digits towards the end
        torch.testing.assert_close(trace.loss[h], torch.tensor(losses), rtol=1e-6, atol=1e-12)


def test_the_update_is_least_squares_with_the_same_damping():
    w, gram = layer(3)
    masks, _ = obs_masks(w, gram, [8], ridge=1e-2)
    fit = least_squares(w, gram, masks[0], ridge=1e-2)
    for h in range(4):
        _, _, kept = slow.eliminate(w[h].numpy(), gram.numpy(), 1e-2, 12)
        torch.testing.assert_close(fit.weight[h], torch.tensor(kept), rtol=1e-9, atol=1e-10)


def test_losses_add_up_to_the_damped_error():
    w, gram = layer(4)
    damping = 1e-3 * gram.diagonal().mean()
    masks, trace = obs_masks(w, gram, [7], ridge=1e-3)
    rest = w - least_squares(w, gram, masks[0], ridge=1e-3).weight
    damped = ((rest @ gram) * rest).sum(1) + damping * rest.square().sum(1)
    torch.testing.assert_close(trace.loss[:, :13].sum(1), damped, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_masks_are_nested_and_exact(seed):
    w, gram = layer(seed, samples=11)  # singular
    w0, g0 = w.clone(), gram.clone()
    masks, _ = obs_masks(w, gram, [0, 3, 10, 19, 20])
    assert torch.equal(w, w0)
    assert torch.equal(gram, g0)
    for mask, k in zip(masks, [0, 3, 10, 19, 20], strict=True):
        assert (mask.sum(1) == k).all()
    for small, large in itertools.pairwise(masks):
        assert not (small & ~large).any()


def test_beats_magnitude_in_layer_error():
    w, gram = layer(5, rows=20, n=40, samples=200)
    mask = obs_masks(w, gram, [12])[0][0]
    top = w.abs().argsort(1, descending=True).argsort(1) < 12
    ours, theirs = (least_squares(w, gram, m).after.sum() for m in (mask, top))
    assert ours < 0.9 * theirs


def test_dead_and_duplicate_inputs_go_first_at_no_cost():
    w, gram = layer(6, rows=3)
    gram[4], gram[:, 4] = 0.0, 0.0
    gram[7], gram[:, 7] = gram[2], gram[:, 2]
    gram[7, 7] = gram[2, 2]
    trace = obs_trace(w, gram, ridge=1e-8)
    scale = ((w @ gram) * w).sum(1)
    for h in range(3):
        assert 4 in trace.order[h, :2].tolist()
        assert {2, 7} & set(trace.order[h, :2].tolist())
        assert (trace.loss[h, :2] < 1e-6 * scale[h]).all()
    nothing = obs_trace(w, torch.zeros(20, 20, dtype=torch.float64))
    assert (nothing.mask(torch.full((3,), 5)).sum(1) == 5).all()


def test_stopping_early_runs_the_same_steps():
    w, gram = layer(7)
    whole, part = obs_trace(w, gram), obs_trace(w, gram, least=15)
    assert torch.equal(whole.order[:, :5], part.order[:, :5])
    assert (part.order[:, 5:] == -1).all()
    assert torch.isinf(part.loss[:, 5:]).all()
    assert torch.equal(part.mask(torch.full((4,), 16)), whole.mask(torch.full((4,), 16)))
    with pytest.raises(ValueError, match="The elimination stopped before 14 kept weights"):
        part.mask(torch.full((4,), 14))


def test_global_counts():
    losses = {
        "a": torch.tensor([[1.0, 5.0, 2.0], [0.5, 0.6, 9.0]]),
        "b": torch.tensor([[3.0, 4.0], [7.0, 8.0]]),
    }
    # running maxima: a: 1 5 5 | .5 .6 9   b: 3 4 | 7 8
    expected = {10: ([3, 3], [2, 2]), 7: ([2, 1], [2, 2]), 3: ([0, 1], [0, 2]), 0: ([0, 0], [0, 0])}
    for kept, (a, b) in expected.items():
        counts = global_counts(losses, kept)
        assert (counts["a"].tolist(), counts["b"].tolist()) == (a, b)
    counts = global_counts(losses, 4, least=1)
    assert counts["a"].tolist() == [1, 1]
    assert counts["b"].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"`kept` must be a whole number in \[4, 10\], got 3"):
        global_counts(losses, 3, least=1)


@pytest.mark.parametrize("least", [0, 1])
def test_global_counts_are_the_cheapest_of_all(least):
    """All ways to share a budget over the rows of two layers, priced by their running maxima."""
    g = torch.Generator().manual_seed(0)
    losses = {"a": torch.rand(2, 4, generator=g), "b": 2 * torch.rand(2, 3, generator=g)}
    prices = [row.cummax(0).values for values in losses.values() for row in values]
    choices = list(itertools.product(*[range(least, len(p) + 1) for p in prices]))
    for kept in range(4 * least, 15):
        counts = global_counts(losses, kept, least=least)
        found = [*counts["a"].tolist(), *counts["b"].tolist()]
        cost = {
            c: sum(float(p[: len(p) - k].sum()) for p, k in zip(prices, c, strict=True))
            for c in choices
            if sum(c) == kept
        }
        assert cost[tuple(found)] == pytest.approx(min(cost.values()), abs=1e-12)


def test_global_counts_refuse_what_says_nothing():
    with pytest.raises(ValueError, match="at least one trace, got none"):
        global_counts({}, 0)
    with pytest.raises(ValueError, match="The losses of 'fc' must be numbers, got NaN"):
        global_counts({"fc": torch.tensor([[1.0, math.nan]])}, 1)


def test_global_counts_lower_the_damped_error():
    """Prices shared over rows cost no more than equal counts."""
    w, gram = layer(8, rows=12, n=30, samples=120)
    w = w * torch.logspace(-1, 1, 12, dtype=torch.float64)[:, None]
    trace = obs_trace(w, gram)
    shared = global_counts({"fc": trace.loss}, 120)["fc"]
    assert int(shared.sum()) == 120
    after = [
        least_squares(w, gram, trace.mask(counts), ridge=1e-4).after.sum()
        for counts in (shared, torch.full((12,), 10))
    ]
    assert after[0] < after[1]


def test_bad_input():
    w, gram = layer(9)
    with pytest.raises(ValueError, match=r"`gram` must be 20 x 20, as the inputs of `weight`"):
        obs_trace(w, gram[:19, :19])
    for ridge in (0.0, math.nan):
        with pytest.raises(ValueError, match="`ridge` must be a finite number > 0"):
            obs_trace(w, gram, ridge=ridge)
    with pytest.raises(ValueError, match="`gram` is not positive definite with ridge 1e-04"):
        obs_trace(w, gram - 0.5 * torch.diag(gram.diagonal()))
    broken = w.clone()
    broken[2, 3] = math.nan
    with pytest.raises(ValueError, match=r"`weight` must be finite, got nan at index \[2, 3\]"):
        obs_trace(broken, gram)
    with pytest.raises(ValueError, match=r"`kept_counts` must be a whole number in \[0, 20\]"):
        obs_masks(w, gram, [21])
    with pytest.raises(ValueError, match=r"`kept` must hold one count in \[0, 20\] for each of"):
        obs_trace(w, gram).mask(torch.tensor([3]))
    for count in (-1, 21):  # of one row alone
        with pytest.raises(
            ValueError, match=r"`kept` must hold one count in \[0, 20\] for each of"
        ):
            obs_trace(w, gram).mask(torch.tensor([3, 3, count, 3]))


def test_damped_inverse_is_symmetric_to_the_last_bit():
    _, gram = layer(10, n=600, samples=700)
    inverse = damped_inverse(gram, 1e-4)
    assert (inverse == inverse.T).all()
    damped = gram + 1e-4 * gram.diagonal().mean() * torch.eye(600)
    product = torch.tensor(inverse) @ damped
    torch.testing.assert_close(product, torch.eye(600, dtype=torch.float64), atol=1e-8, rtol=0)
