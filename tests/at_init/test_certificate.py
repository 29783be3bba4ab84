"""The a-posteriori certificate: its parts from the definition, and never below the error."""

import itertools
import math

import pytest
import torch

from prunus.theory.at_init import Setting, certificate, simulate
from reference import at_init as reference


def test_certificate_is_above_its_definition_by_enumeration():
    """With the Lipschitz constant by enumeration and margins by sampling the bound is tighter."""
    setting = Setting(
        classes=2, samples=8, dimension=60, neurons=3, signal=9.0, init_scale=1e-3, noise=0.8
    )
    generator = torch.Generator().manual_seed(0)
    run = simulate(setting, [1.0, 0.5], seeds=2, keep_weights=True, checkpoints=0)
    for weight in run.weights.values():
        exact = 0.0
        points, labels = reference.fresh_points(setting, 10000, generator)
        output = reference.forward(weight, points, 2)
        for y, j in itertools.permutations(range(2)):
            mean = output[labels == y].mean(0)
            margin = max(0.0, float(mean[y] - mean[j]))
            square = reference.lipschitz_squared(weight, 2, y, j)
            exact += math.exp(-(margin**2) / (2 * setting.noise**2 * square)) / 2
        ours = certificate(weight, setting)
        # sampled margins move the exponent by a per cent or so
        assert ours >= exact * 0.9
        error = 1 - float(reference.tie_aware_score(output[:4000], labels[:4000]).mean())
        assert ours >= error


def test_certificate_improves_with_mild_pruning_and_always_holds():
    """At a signal of 8 it is not vacuous, holds in every run, and falls from p = 1 to 0.35."""
    run = simulate(Setting(signal=8.0), [1, 0.35, 0.1], seeds=4, checkpoints=0, dtype=torch.float32)
    error = 1 - run.test_accuracy
    assert bool((run.certificate >= error).all())
    assert bool((run.certificate < 1).all())
    assert bool((run.certificate[1] < run.certificate[0]).all())
    print("certificate", run.certificate.mean(1).tolist(), "error", error.mean(1).tolist())


def test_dead_network_certifies_nothing():
    setting = Setting(classes=3, samples=9, dimension=30, neurons=2)
    assert certificate(torch.zeros(6, 30), setting) == 1


def test_noise_free_margin_is_certain():
    """Weights on signal coordinates alone, without noise there: no error is possible."""
    setting = Setting(classes=2, samples=4, dimension=10, neurons=1, noise_on_signal=False)
    assert certificate(torch.eye(2, 10), setting) == 0


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(5, 30), r"must have shape \(classes · neurons, dimension\) = \(6, 30\)"),
        (torch.full((6, 30), math.nan), "`weight` must be finite"),
        (torch.zeros(6), "`weight` must have 2 axes"),
    ],
)
def test_bad_weights(weight, message):
    setting = Setting(classes=3, samples=9, dimension=30, neurons=2)
    with pytest.raises(ValueError, match=message):
        certificate(weight, setting)
