"""Plans of changed predictions hold on fresh data, and plans say when a limit is out of reach."""

import itertools
import re

import pytest
import torch
from scipy.stats import binom
from torch import nn

import prunus
from prunus.guarantee.solve import in_order
from prunus.rng import generator_for
from prunus.theory.gap.held_out import clopper_pearson

DELTA = 0.1
LIMIT = 0.05
SAMPLES = 150


def accepted_rate(rates, generator, limit_of):
    """The true rate of the plan that is accepted where `limit_of` judges each."""
    draws = torch.rand(SAMPLES, dtype=torch.float64, generator=generator)
    tested = {(i,): limit_of(int((draws < rate).sum())) for i, rate in enumerate(rates)}
    found, _ = in_order(list(tested), LIMIT, tested.__getitem__)
    return 0.0 if found is None else rates[found[0]]


def test_a_sequence_of_tests_accepts_a_bad_plan_with_probability_delta():
    """2000 verifications of 40 plans; violations within the 99.9 % binomial quantile of δ."""
    generator = generator_for(0, "verify")
    rates = [0.001 * 1.13**i for i in range(40)]  # true shares, from .1 % to 12 %
    trials = 2000
    exact = [clopper_pearson(k, SAMPLES, DELTA) for k in range(SAMPLES + 1)]
    bad = sum(accepted_rate(rates, generator, exact.__getitem__) > LIMIT for _ in range(trials))
    allowed = int(binom.ppf(0.999, trials, DELTA))
    print(f"{bad} of {trials} verifications accepted a plan beyond the limit; allowed {allowed}")
    assert bad <= allowed
    # negative control: the share that was seen, without its confidence limit
    seen = sum(accepted_rate(rates, generator, lambda k: k / SAMPLES) > LIMIT for _ in range(500))
    assert seen > int(binom.ppf(0.999, 500, DELTA))


def teacher(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 4, bias=False)).eval()
    generator = torch.Generator().manual_seed(seed)
    return model, lambda n: torch.randn(n, 10, generator=generator)


def true_rate(model, plan, x):
    pruned = prunus.prune(model, "magnitude", plan)
    with torch.no_grad():
        return float((model(x).argmax(1) != pruned.model(x).argmax(1)).double().mean())


def test_a_plan_holds_on_fresh_data():
    model, draw = teacher()
    plan = prunus.plan(model, 0.05, kind="changed", data=draw(1500))
    assert plan.feasible
    assert 0 < plan.density < 1
    assert 0 < plan.value <= 0.05
    verifying = next(re.search(r"on (\d+) samples that did not plan", n) for n in plan.notes[1:])
    assert verifying is not None
    assert 1000 <= int(verifying[1]) < 1100  # two thirds
    assert true_rate(model, plan, draw(20_000)) <= 0.05


@pytest.mark.slow
def test_coverage_of_whole_plans():
    """150 plans from fresh data each; held-out violations within the binomial bound of δ."""
    model, draw = teacher(1)
    fresh, trials = draw(40_000), 150
    rates = [
        true_rate(
            model, prunus.plan(model, LIMIT, kind="changed", delta=DELTA, data=draw(400)), fresh
        )
        for _ in range(trials)
    ]
    bad = sum(rate > LIMIT for rate in rates)
    print(f"{bad} of {trials} plans exceed the limit; mean true rate {sum(rates) / trials:.4f}")
    assert bad <= int(binom.ppf(0.999, trials, DELTA))
    assert sum(rates) / trials > 0.2 * LIMIT  # and they are not empty


def test_too_few_samples_say_how_many_are_needed():
    model, draw = teacher()
    plan = prunus.plan(model, 0.005, kind="changed", data=draw(300))
    assert plan.density == 1
    assert any("samples verify, but a share of 0.005 needs 598" in n for n in plan.notes)
    with pytest.raises(ValueError, match=r"is a share of predictions <= 1, got 2"):
        prunus.plan(model, 2, kind="changed", data=draw(300))
    with pytest.raises(ValueError, match=r"counts predicted classes, the network has one output"):
        prunus.plan(nn.Sequential(nn.Linear(10, 1)), 0.1, kind="changed", data=draw(300))


def test_a_density_makes_a_limit_unreachable():
    model, draw = teacher()
    x = draw(300)
    free = prunus.plan(model, 0.1, data=x)
    same = prunus.plan(model, 0.1, data=x, density=min(1.0, free.density + 0.01))
    assert same.feasible
    assert same.kept == free.kept
    tight = prunus.plan(model, 0.1, data=x, density=free.density / 2)
    assert not tight.feasible
    assert tight.density <= free.density / 2
    assert tight.value > 0.1
    assert "NOT FEASIBLE" in tight.summary()
    assert any("meets the limit; this one has the least error" in note for note in tight.notes)
    # of least error: no worse than the same density for both layers
    uniform = prunus.prune(model, "magnitude", tight.density, data=x)
    with torch.no_grad():
        gap = (model(x) - uniform.model(x)).square().sum(1).mean()
        rival = float((gap / model(x).square().sum(1).mean()).sqrt())
    assert tight.value <= rival
    changed = prunus.plan(model, 0.05, kind="changed", data=draw(1500), density=0.02)
    assert not changed.feasible
    assert changed.value > 0.05


def test_a_looser_limit_never_keeps_more():
    model, draw = teacher()
    x = draw(1500)
    kept = [prunus.plan(model, e, kind="changed", data=x).density for e in (0.01, 0.05, 0.2)]
    assert all(a >= b for a, b in itertools.pairwise(kept))
