"""Greedy steps and factors against trying everything."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.imitation import (
    Form,
    equal_scales,
    line_scales,
    line_steps,
    refit_scales,
    refit_steps,
    repeated_scales,
    uniform_steps,
)
from prunus.imitation.steps import Line

RULES = {
    "set": (uniform_steps, equal_scales),
    "multiset": (lambda f, **k: uniform_steps(f, repeats=True, **k), repeated_scales),
    "line": (line_steps, line_scales),
    "refit": (refit_steps, refit_scales),
}


def a_form(n, seed=0, samples=40, dead=(), aims=False):
    """Of correlated contributions with a common mean, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(samples, n, generator=generator, dtype=torch.float64).abs()
    y = y @ torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5 + 0.3
    y[:, list(dead)] = 0.0
    if not aims:
        return Form.plain(y.T @ y / samples)
    target = y.sum(1) + torch.randn(samples, generator=generator, dtype=torch.float64)
    return Form(
        matrix=y.T @ y / samples,
        target=y.T @ target / samples,
        constant=float(target.square().mean()),
    )


@pytest.mark.parametrize("aims", [False, True])
@pytest.mark.parametrize("repeats", [False, True])
def test_uniform_steps_are_the_best_of_all(repeats, aims):
    form = a_form(7, aims=aims)
    run = uniform_steps(form, repeats=repeats, steps=7 if not repeats else 20)
    counts = torch.zeros(7, dtype=torch.float64)
    for n, (item, error) in enumerate(zip(run.picked.tolist(), run.error.tolist(), strict=True), 1):
        tried = {}
        for i in range(7):
            if not repeats and counts[i]:
                continue
            more = counts.clone()
            more[i] += 1
            tried[i] = form.error(7 * more / n)
        assert item == min(tried, key=tried.__getitem__)
        assert error == pytest.approx(tried[item], abs=1e-9 * form.constant)
        counts[item] += 1
    if not repeats:
        assert sorted(run.picked.tolist()) == list(range(7))
        assert run.trace.order.tolist() == run.picked.tolist()
        if not aims:
            assert run.error[-1] == pytest.approx(0, abs=1e-9 * form.constant)


@pytest.mark.parametrize("seed", range(3))
def test_line_steps_are_the_best_of_all_corners_and_lengths(seed):
    form = a_form(6, seed=seed, aims=seed == 2)
    line = Line(form.matrix.numpy(), form.target.numpy(), form.constant, 6, np.zeros(6))
    every = np.ones(6, dtype=bool)
    before, negative = form.constant, 0
    for t in range(40):
        share = line.share.copy()
        item, gain = line.step(every)
        after = form.error(torch.from_numpy(6 * line.share))
        assert line.error == pytest.approx(after, abs=1e-9 * form.constant)
        assert (line.share >= 0).all()
        assert line.share.sum() == pytest.approx(1)
        if t:
            assert before - after == pytest.approx(gain, abs=1e-9 * form.constant)
            for i in range(6):
                low = -share[i] / (1 - share[i]) if share[i] < 1 else 0.0
                for gamma in np.linspace(low, 1, 41):
                    moved = (1 - gamma) * share
                    moved[i] += gamma
                    assert after <= form.error(torch.from_numpy(6 * moved)) + 1e-9 * form.constant
            negative += line.share[item] < share[item]
        else:
            single = [form.error(6 * torch.eye(6, dtype=torch.float64)[i]) for i in range(6)]
            assert after == pytest.approx(min(single))
        before = after
    assert negative or seed


def refitted(form, items):
    """The least D over factors on these classes."""
    inner = form.matrix[items][:, items]
    a = torch.zeros(len(form.matrix), dtype=torch.float64)
    a[items] = torch.linalg.lstsq(inner, form.target[items], driver="gelsd").solution
    return form.error(a)


@pytest.mark.parametrize("aims", [False, True])
def test_refit_takes_what_lowers_the_refitted_error_most(aims):
    form = a_form(8, aims=aims)
    run = refit_steps(form)
    chosen: list[int] = []
    for item, error in zip(run.picked.tolist(), run.error.tolist(), strict=True):
        tried = {i: refitted(form, [*chosen, i]) for i in range(8) if i not in chosen}
        assert item == min(tried, key=tried.__getitem__)
        assert error == pytest.approx(tried[item], abs=1e-8 * form.constant)
        chosen.append(item)
    assert len(chosen) == 8


def test_of_one_set_refitted_factors_are_best_and_equal_ones_worst():
    for seed in range(4):
        form = a_form(8, seed=seed, aims=seed == 3)
        for k in range(1, 9):
            best = min(refitted(form, list(s)) for s in itertools.combinations(range(8), k))
            for steps, _ in RULES.values():
                kept = steps(form).trace.mask(torch.tensor([k])).flatten()
                refit, line, repeated, equal = (
                    form.error(scales(form, kept) * kept)
                    for scales in (refit_scales, line_scales, repeated_scales, equal_scales)
                )
                slack = 1e-7 * form.constant
                assert best <= refit + slack
                assert refit <= line + slack
                assert line <= equal + slack
                assert repeated <= equal + slack
                assert line <= repeated + 1e-3 * form.constant  # the least over the simplex


def test_line_factors_are_the_best_of_the_simplex():
    from scipy.optimize import nnls

    for seed in range(3):
        form = a_form(6, seed=seed, aims=True)
        kept = torch.tensor([True, True, False, True, True, False])
        root = torch.linalg.cholesky(form.matrix[kept][:, kept]).T
        aim = torch.linalg.solve(root.T, form.target[kept])
        heavy = 1e4  # a row that holds Σ a = 6
        rows = torch.cat([root, heavy * torch.ones(1, 4, dtype=torch.float64)])
        sides = torch.cat([aim, torch.tensor([6 * heavy], dtype=torch.float64)])
        solution = torch.zeros(6, dtype=torch.float64)
        solution[kept] = torch.from_numpy(nnls(rows.numpy(), sides.numpy())[0])
        found = form.error(line_scales(form, kept) * kept)
        assert found <= form.error(solution) + 1e-3 * form.constant


def test_the_multiset_falls_with_the_square_of_the_steps():
    """Ye et al. (2020): O(1/n²); M of full rank, the network inside the hull."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(400, 60, generator=generator, dtype=torch.float64) + 0.5
    run = uniform_steps(Form.plain(y.T @ y / 400), repeats=True, steps=2000)
    window = run.error.clamp_min(0)
    mean = [float(window[n - 50 : n + 50].mean()) for n in (500, 1900)]
    slope = (np.log(mean[1]) - np.log(mean[0])) / np.log(1900 / 500)
    assert -2.3 <= slope <= -1.7


@pytest.mark.parametrize("rule", RULES)
def test_dead_classes_come_last_and_are_no_part_of_the_mean_field(rule):
    steps, scales = RULES[rule]
    form, small = a_form(9, dead=(0, 4)), a_form(9, dead=(0, 4))
    live = torch.tensor([1, 2, 3, 5, 6, 7, 8])
    small = Form(
        matrix=form.matrix[live][:, live], target=form.target[live], constant=form.constant
    )
    order = steps(form).trace.order.tolist()
    assert order[-2:] == [0, 4]
    assert order[:-2] == live[steps(small).trace.order].tolist()
    kept = steps(form).trace.mask(torch.tensor([8])).flatten()
    a = scales(form, kept)
    assert bool(torch.isfinite(a).all())
    assert a[0] == 1
    torch.testing.assert_close(a[live], scales(small, kept[live]))


@pytest.mark.parametrize("rule", RULES)
def test_of_nothing_the_lowest_indices_stay(rule):
    steps, scales = RULES[rule]
    form = Form.plain(torch.zeros(5, 5, dtype=torch.float64))
    mask = steps(form).trace.mask(torch.tensor([2])).flatten()
    assert mask.tolist() == [True, True, False, False, False]
    assert scales(form, mask).tolist() == [1.0] * 5


@pytest.mark.parametrize("rule", RULES)
@given(n=st.integers(1, 12), pools=st.sampled_from([1, 2, 3]), seed=st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_sets_are_nested_and_pools_grow_alike(rule, n, pools, seed):
    steps, _ = RULES[rule]
    generator = torch.Generator().manual_seed(seed)
    form = a_form(n * pools, seed=seed, dead=(n * pools - 1,) if n > 2 else ())
    candidates = torch.rand(n * pools, generator=generator) < 0.8
    trace = steps(form, candidates=candidates, pools=pools).trace
    assert sorted(trace.order.tolist()) == candidates.nonzero().flatten().tolist()
    there = candidates.view(pools, n).sum(1)
    before = torch.zeros(pools, n, dtype=torch.bool)
    for k in range(n + 1):
        kept = torch.full((pools,), k).minimum(there)
        mask = trace.mask(kept)
        assert torch.equal(mask.sum(1), kept)
        assert not bool((before & ~mask).any())
        assert not bool((mask.flatten() & ~candidates).any())
        before = mask


@pytest.mark.parametrize("rule", RULES)
def test_the_whole_group_has_factors_of_one(rule):
    steps, scales = RULES[rule]
    form = a_form(9)
    kept = steps(form).trace.mask(torch.tensor([9])).flatten()
    torch.testing.assert_close(
        scales(form, kept), torch.ones(9, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_a_form_that_is_no_second_moment_has_no_factors():
    form = a_form(5)
    values, vectors = torch.linalg.eigh(form.matrix)
    values[0] = -1e-6 * values.sum()
    wrong = Form.plain(vectors @ torch.diag(values) @ vectors.T)
    with pytest.raises(ValueError, match=r"^The form of 5 classes is not positive definite with "):
        refit_scales(wrong, torch.ones(5, dtype=torch.bool))


def test_classes_alike_are_no_reason_to_fail():
    """Two equal classes: M has no inverse, and the second gains nothing."""
    form = a_form(6)
    twice = torch.tensor([0, 1, 2, 3, 4, 5, 2, 3])
    form = Form.plain(form.matrix[twice][:, twice])
    run = refit_steps(form)
    assert sorted(run.trace.order.tolist()) == list(range(8))
    assert len({2, 6} & set(run.trace.order[:6].tolist())) == 1
    assert float(run.error[-1]) == pytest.approx(0, abs=1e-8 * form.constant)
    a = refit_scales(form, torch.tensor([True] * 5 + [False] + [True] * 2))
    assert bool(torch.isfinite(a).all())
