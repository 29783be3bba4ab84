"""The reference experiments: gains, collapse and controls."""

import dataclasses
import math

import pytest
import torch

from prunus.theory.at_init import Setting, predict_masks, simulate, summarise

A = Setting()
FAST = {"checkpoints": 0, "dtype": torch.float32}


def gain(run, density):
    """Paired differences to the dense runs."""
    at = run.densities.index(density)
    return run.test_accuracy[at] - run.test_accuracy[run.densities.index(1.0)]


def test_experiment_a_mild_gain_and_collapse():
    run = simulate(A, [1.0, 0.25, 6e-4], seeds=10, **FAST)
    better = gain(run, 0.25)
    error = float(better.std()) / math.sqrt(10)
    print(f"gain at 0.25: {better.mean():+.4f}, standard error {error:.4f}")
    assert float(better.mean()) >= 0.09
    assert float(better.mean()) > 5 * error
    assert float(run.test_accuracy[2].mean()) <= 0.40
    assert bool((run.train_accuracy == 1).all())
    assert bool((run.train_loss <= 0.15).all())
    # reference means over 20 seeds, tolerances for a mean over 10
    assert float(run.test_accuracy[0].mean()) == pytest.approx(0.828, abs=0.02)
    assert float(run.test_accuracy[1].mean()) == pytest.approx(0.954, abs=0.03)


def test_the_gain_is_no_effect_of_the_first_weights():
    """Dense networks with 2 to 10 times smaller first weights do not gain."""
    base = simulate(A, [1.0], seeds=4, **FAST).test_accuracy.mean()
    for scale in (4.5e-5, 1e-5):
        control = simulate(dataclasses.replace(A, init_scale=scale), [1.0], seeds=4, **FAST)
        assert abs(float(control.test_accuracy.mean() - base)) < 0.01


def test_spread_signals_gain_nothing():
    run = simulate(dataclasses.replace(A, support=64), [1.0, 0.35], seeds=8, **FAST)
    assert abs(float(gain(run, 0.35).mean())) <= 0.015


def test_lazy_networks_gain_but_so_does_a_smaller_start():
    lazy = dataclasses.replace(A, init_scale=1e-2)
    run = simulate(lazy, [1.0, 0.1, 0.05], seeds=6, **FAST)
    assert float(gain(run, 0.05).mean()) >= 0.15
    control = simulate(
        dataclasses.replace(lazy, init_scale=1e-2 * math.sqrt(0.1)), [1.0], seeds=6, **FAST
    )
    rescaled = float(control.test_accuracy.mean())
    pruned = float(run.test_accuracy[1].mean())
    dense = float(run.test_accuracy[0].mean())
    print(f"lazy: dense {dense:.3f}, pruned to 0.1 {pruned:.3f}, dense rescaled {rescaled:.3f}")
    assert rescaled - dense > 0.05
    assert rescaled == pytest.approx(0.382, abs=0.03)


def test_summary_pairs_the_seeds():
    run = simulate(Setting(dimension=1024, neurons=10), [0.3, 1.0], seeds=6, **FAST)
    pruned, dense = summarise(run)
    assert (dense.gain, dense.gain_error) == (0, 0)
    difference = gain(run, 0.3)
    assert pruned.gain == pytest.approx(float(difference.mean()))
    assert pruned.gain_error == pytest.approx(float(difference.std()) / math.sqrt(6))
    # Student's t with 5 degrees of freedom
    assert pruned.gain_interval == pytest.approx(2.5705818 * pruned.gain_error, rel=1e-6)
    assert pruned.predicted == pytest.approx(pruned.accuracy, abs=0.06)
    masks = predict_masks(run)
    torch.testing.assert_close(masks.error, masks.accuracy - run.test_accuracy)


def test_few_seeds_give_no_interval():
    run = simulate(Setting(dimension=1024, neurons=10, support=2), [0.3], seeds=1, **FAST)
    with pytest.warns(RuntimeWarning, match="1 seeds are fewer than 5: no interval"):
        (row,) = summarise(run)
    assert row.accuracy_error is row.accuracy_interval is row.gain is row.predicted is None
