"""Before the mask is drawn: coverage over masks, predictions, and masks of least variance."""

import itertools
import math

import pytest
import scipy.stats as stats
import torch

from prunus.allocation.least_variance import optimal_densities
from prunus.scores.sensitivity import sensitivity_scores
from prunus.theory.gap import Branches, LinearPair, Pointwise, activation, certify
from prunus.theory.gap.given_weights import (
    drawn_mean_square,
    drawn_norm,
    drawn_sup,
    draws_needed,
    replacement_norm,
    simulated_bound,
)
from prunus.theory.gap.sensitivity import predicted_random, predicted_rescaled, sensitivities
from prunus.theory.gap.stages import run

pytestmark = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


def trained(seed=0, widths=(12, 16, 16, 4)):
    g = torch.Generator().manual_seed(seed)
    stages = []
    for i, (m, n) in enumerate(itertools.pairwise(widths)):
        w = torch.randn(n, m, dtype=torch.float64, generator=g) * math.sqrt(2 / m)
        stages.append(LinearPair(name=f"fc{i}", weight=w, pruned_weight=w))
        stages.append(Pointwise(name="act", activation=activation("relu")))
    return stages[:-1]


def drawn(stages, densities, generator, rescaled=True):
    out = []
    for s in stages:
        if isinstance(s, LinearPair):
            p = densities[s.name]
            mask = torch.rand(s.weight.shape, generator=generator) < p
            v = s.weight * mask
            v = v / p if rescaled else v
            out.append(LinearPair(name=s.name, weight=s.weight, pruned_weight=v))
        else:
            out.append(s)
    return out


def test_reference_layer():
    w = torch.sin(1 + torch.arange(2000, dtype=torch.float64)).reshape(50, 40) / math.sqrt(40)
    assert drawn_norm(w, 0.9, 0.05).value == pytest.approx(0.8438, rel=5e-3)


PROFILES = ["heavy rows", "band", "positive", "matrix of densities"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("rescaled", [True, False])
def test_layer_bounds_cover(profile, rescaled):
    """400 masks at δ = 0.1; negative control: 0.9 × the measured 80 % quantile is caught."""
    g = torch.Generator().manual_seed(PROFILES.index(profile))
    w = torch.randn(15, 22, dtype=torch.float64, generator=g)
    p = torch.full_like(w, 0.7)
    if profile == "heavy rows":
        w[:2] *= 6
    elif profile == "band":
        w = w * ((torch.arange(15)[:, None] - torch.arange(22)).abs() < 4)
    elif profile == "positive":
        w = w.abs()
    else:
        p = 0.1 + 0.89 * torch.rand(15, 22, dtype=torch.float64, generator=g)
    bound = drawn_norm(w, p, 0.1, rescaled=rescaled).value
    masks = torch.rand(400, 15, 22, dtype=torch.float64, generator=g) < p
    v = w * masks / p if rescaled else w * masks
    norms = torch.linalg.matrix_norm(w - v, 2)
    limit = stats.binom.isf(1e-7, 400, 0.1)
    assert int((norms > bound).sum()) <= limit
    assert int((norms > 0.9 * norms.quantile(0.8)).sum()) > stats.binom.isf(1e-3, 400, 0.1)
    assert bound < 6 * float(norms.quantile(0.9))


def test_fixed_size_masks_pay_for_conditioning():
    w = torch.ones(10, 10)
    free, fixed = drawn_norm(w, 0.5, 0.05), drawn_norm(w, 0.5, 0.05, kept=50)
    assert fixed.value > free.value


def test_draws_with_replacement_cover():
    g = torch.Generator().manual_seed(0)
    w = torch.randn(8, 10, dtype=torch.float64, generator=g)
    pi = w.abs() / w.abs().sum()
    bound = replacement_norm(w, pi, 200, 0.1).value
    norms = []
    for _ in range(200):
        at = torch.multinomial(pi.flatten(), 200, replacement=True, generator=g)
        v = torch.zeros(80, dtype=torch.float64)
        v.index_add_(0, at, (w / pi).flatten()[at] / 200)
        norms.append(float(torch.linalg.matrix_norm(w - v.reshape(8, 10), 2)))
    assert sum(n > bound for n in norms) <= stats.binom.isf(1e-6, 200, 0.1)


def test_network_bound_is_above_the_certificate_of_drawn_masks():
    stages = trained()
    densities = {f"fc{i}": 0.9 for i in range(3)}
    before = drawn_sup(stages, densities, radius=1.0, delta=0.1)
    assert sum(s for _, s in before.ledger) == pytest.approx(0.1)
    g = torch.Generator().manual_seed(1)
    after = [
        certify(drawn(stages, densities, g), radius=1.0, search_steps=0).value for _ in range(60)
    ]
    assert sum(a > before.value for a in after) <= stats.binom.isf(1e-6, 60, 0.1)
    simulated = simulated_bound(
        lambda generator: (
            certify(drawn(stages, densities, generator), radius=1.0, search_steps=0).value
        ),
        60,
        generator=g,
    )
    assert simulated.status == "RIG/MC"
    assert simulated.value < before.value
    assert simulated.delta == pytest.approx(1 - 1e-3 ** (1 / 60) + 1e-3)
    assert draws_needed(1e-3, 1 - 1e-3 ** (1 / 60)) in (60, 61)


def test_mean_square_over_masks_is_above_the_simulated():
    stages = trained(2)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 12, dtype=torch.float64, generator=g)
    densities = {f"fc{i}": 0.8 for i in range(3)}
    bound = drawn_mean_square(stages, densities, x).value
    total = 0.0
    for _ in range(100):
        pair = drawn(stages, densities, g)
        gap = (run(pair, x) - run(pair, x, pruned=True)).square().sum(dim=1).mean()
        total += float(gap) / 100
    rms = math.sqrt(total)
    assert rms < bound < 16 * rms


def test_sensitivities_are_squared_gradients():
    stages = [
        *trained(widths=(5, 4)),
    ]
    block = LinearPair(
        name="in", weight=torch.eye(4).double() * 0.3, pruned_weight=torch.eye(4).double()
    )
    relu = Pointwise(name="t", activation=activation("tanh"))
    net = [*stages, relu, Branches(name="block", branch=(block, relu))]
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).double()
    found = sensitivities(net, x)
    weights = {s.name: s.weight.clone().requires_grad_() for s in (stages[0], block)}

    def forward(one):
        h = torch.tanh(one @ weights["fc0"].T)
        return h + torch.tanh(h @ weights["in"].T)

    expected = {name: torch.zeros_like(w) for name, w in weights.items()}
    for one in x:
        for o in range(4):
            slopes = torch.autograd.grad(forward(one)[o], list(weights.values()))
            for name, slope in zip(weights, slopes, strict=True):
                expected[name] += slope.square().detach() / 7
    for name in weights:
        torch.testing.assert_close(found[name], expected[name])
    probed = sensitivities(net, x, probes=4000)
    for name in weights:  # 4000 sign vectors: a few per cent of noise per entry
        torch.testing.assert_close(probed[name], expected[name], rtol=0.15, atol=2e-3)


def test_predictions_of_random_masks():
    stages = trained(4, widths=(20, 40, 40, 5))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 20, dtype=torch.float64, generator=g)
    reaction = sensitivities(stages, x)
    weights = {s.name: s.weight for s in stages if isinstance(s, LinearPair)}
    densities = dict.fromkeys(weights, 0.95)
    for rescaled in (True, False):
        squares = []
        for _ in range(60):
            pair = drawn(stages, densities, g, rescaled)
            gap = run(pair, x) - run(pair, x, pruned=True)
            squares.append(float(gap.square().sum(dim=1).mean()))
        rms = math.sqrt(sum(squares) / 60)
        predicted = (
            predicted_rescaled(weights, reaction, densities)
            if rescaled
            else predicted_random(stages, densities, x)
        )
        assert predicted == pytest.approx(rms, rel=0.12)


def test_optimal_densities_beat_uniform_ones():
    stages = trained(5, widths=(20, 40, 40, 5))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 20, dtype=torch.float64, generator=g) * torch.logspace(0, -2, 20)
    reaction = sensitivities(stages, x)
    weights = {s.name: s.weight for s in stages if isinstance(s, LinearPair)}
    best = optimal_densities(weights, reaction, 0.5)
    total = sum(w.numel() for w in weights.values())
    assert sum(float(p.sum()) for p in best.values()) == pytest.approx(0.5 * total, rel=1e-6)
    assert all(float(p.min()) >= 0.05 and float(p.max()) <= 1 for p in best.values())
    uniform = dict.fromkeys(weights, 0.5)

    def rms(densities):
        total = 0.0
        for _ in range(40):
            pair = drawn(stages, densities, g)
            gap = run(pair, x) - run(pair, x, pruned=True)
            total += float(gap.square().sum(dim=1).mean()) / 40
        return math.sqrt(total)

    assert rms(best) < 0.6 * rms(uniform)
    assert predicted_rescaled(weights, reaction, best) < 0.6 * predicted_rescaled(
        weights, reaction, uniform
    )
    scores = sensitivity_scores(weights["fc0"], torch.zeros_like(weights["fc0"]))
    assert bool((scores == 0).all())


def test_bad_input():
    w = torch.ones(3, 3)
    with pytest.raises(ValueError, match="0 at a non-zero weight"):
        drawn_norm(w, torch.zeros(3, 3), 0.05)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        drawn_norm(w, 1.5, 0.05)
    with pytest.raises(ValueError, match="no layers here"):
        drawn_sup(trained(), {"nope": 0.5}, radius=1.0)
    with pytest.raises(ValueError, match="sum to 1"):
        replacement_norm(w, w, 3, 0.05)
