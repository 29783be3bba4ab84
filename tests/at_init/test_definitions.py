"""Thresholds, noise scales and errors against their definitions, where a slip would show."""

import dataclasses
import itertools
import math

import pytest
import torch
from scipy import stats

from prunus.theory.at_init import Setting
from prunus.theory.at_init.data import draw_problem
from prunus.theory.at_init.phase import classify_regime
from prunus.theory.at_init.safe import _coverage_limit, _leave_one_out
from prunus.theory.at_init.summary import spread
from prunus.theory.at_init.thresholds import (
    information_bounds,
    mean_accuracy_bound,
    over_pruned_probability,
    own_signal_neurons,
    p_keep,
    p_mild,
    p_over,
    path_loss_probability,
    retention,
    signal_loss_probability,
    visible_classes,
)


def every_mask(count):
    for bits in itertools.product([0, 1], repeat=count):
        yield torch.tensor(bits)


def weight_of(mask, p):
    kept = int(mask.sum())
    return p**kept * (1 - p) ** (mask.numel() - kept)


@pytest.mark.parametrize(("classes", "neurons", "support"), [(2, 2, 1), (3, 1, 1), (2, 1, 2)])
def test_probabilities_by_enumerating_every_mask(classes, neurons, support):
    """Every mask of the signal's columns, weighted by its probability."""
    p, rows, columns = 0.3, classes * neurons, classes * support
    none = lost = accuracy = expected = 0.0
    for bits in every_mask(rows * columns):
        mask, chance = bits.reshape(rows, columns), weight_of(bits, p)
        seen = len(visible_classes(mask, classes, support))
        own = own_signal_neurons(mask, classes, support)
        none += chance * (seen == 0)
        lost += chance * bool((own == 0).any())
        expected += chance * int((own == 0).sum())
        accuracy += chance * information_bounds(seen, classes).accuracy
    assert over_pruned_probability(p, classes, neurons, support) == pytest.approx(none)
    assert mean_accuracy_bound(p, classes, neurons, support) == pytest.approx(accuracy)
    found = signal_loss_probability(p, neurons, classes, support)
    assert found.any_class == pytest.approx(lost)
    assert found.expected_classes == pytest.approx(expected)
    assert found.all_kept == pytest.approx(1 - lost)


@pytest.mark.parametrize("delta", [0.5, 0.1, 1e-6])
def test_p_keep_loses_a_signal_with_probability_delta_exactly(delta):
    p = p_keep(30, 5, delta, support=2)
    assert signal_loss_probability(p, 30, 5, 2).any_class == pytest.approx(delta, rel=1e-9)


def test_orders_of_magnitude_use_the_natural_logarithm_and_stop_at_one():
    assert p_over(3, 7, 1000) == pytest.approx(1 / (21 * math.log(1000)))
    assert p_mild(100, 1000, 2.0) == pytest.approx(2 * math.log(1000) / 100)
    assert p_mild(2, 1000) == 1.0


def test_information_bounds_by_guessing_among_the_classes_that_look_alike():
    for k in (2, 5):
        for a in range(k + 1):
            found = information_bounds(a, k)
            hidden = k - a
            right = a + (1 if hidden else 0)  # one guess among the hidden ones is right
            assert found.accuracy == pytest.approx(right / k)
            entropy = -sum(1 / hidden * math.log(1 / hidden) for _ in range(hidden))
            assert found.loss == pytest.approx(hidden / k * entropy)


def test_retention_is_the_mean_square_over_the_square_of_the_mean():
    """A binomial number of paths: λ²/E c² for c ~ Bin(n, p), λ = n p."""
    n, p = 12, 0.4
    law = stats.binom(n, p)
    assert retention(p, n * p) == pytest.approx(law.mean() ** 2 / (law.var() + law.mean() ** 2))
    assert retention(1.0, 5.0) == 1.0


@pytest.mark.parametrize("pruned_layers", [1, 2, 3])
def test_path_loss_by_enumerating_every_mask(pruned_layers):
    """Two hidden layers, two signal coordinates; layers beyond the pruned ones are whole."""
    p, support, widths = 0.35, 2, [2, 2]
    sizes = [support * 2, 4, 2]
    lost = 0.0
    for bits in every_mask(sum(sizes[:pruned_layers])):
        parts = list(bits.split(sizes[:pruned_layers]))
        parts += [torch.ones(size, dtype=bits.dtype) for size in sizes[pruned_layers:]]
        first, second, last = parts[0].reshape(2, 2), parts[1].reshape(2, 2), parts[2]
        paths = last @ second @ first @ torch.ones(2, dtype=bits.dtype)
        lost += weight_of(bits, p) * (int(paths) == 0)
    found = path_loss_probability(p, widths, support, pruned_layers=pruned_layers)
    assert found == pytest.approx(lost)


def test_signal_to_noise_falls_with_the_noise_variance():
    setting = Setting(classes=4, samples=100, dimension=900, signal=3.0, noise=2.0)
    assert setting.signal_to_noise == pytest.approx(math.sqrt(25) * 9 / (math.sqrt(900) * 4))


def test_masks_keep_the_smallest_uniforms():
    problem = draw_problem(Setting(classes=2, samples=4, dimension=20, neurons=3), 0)
    mask = problem.mask(0.3)
    assert problem.uniform[mask].max() < 0.3 <= problem.uniform[~mask].min()


def test_regimes_change_where_their_definitions_say():
    setting = Setting(classes=2, samples=20, dimension=4096, neurons=20)
    over = p_over(2, 20, 4096)
    half = 1 - 0.5 ** (1 / 20)  # P(one class loses its signal) = 1/2
    keep = p_keep(20, 2, 0.01)
    borders = [
        (over, "over_pruned", "signal_loss"),
        (half, "signal_loss", "transitional"),
        (keep, "transitional", "mild"),
    ]
    for border, below, above in borders:
        assert classify_regime(setting, border * (1 - 1e-6)).name == below
        assert classify_regime(setting, border * (1 + 1e-6)).name == above


def test_leave_one_out_is_refitting_without_each_sample():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, dtype=torch.float64, generator=draw)
    y = torch.randn(9, 2, dtype=torch.float64, generator=draw)
    kernel = x @ x.T
    found = _leave_one_out(kernel, y, 0.7)
    for i in range(9):
        rest = [j for j in range(9) if j != i]
        system = kernel[rest][:, rest] + 0.7 * torch.eye(8, dtype=torch.float64)
        expected = kernel[i, rest] @ torch.linalg.solve(system, y[rest])
        torch.testing.assert_close(found[i], expected)


def test_the_coverage_limit_lies_where_the_share_of_the_margin_over_chance_is_lost():
    """Read off the curve that is returned, by straight lines over log density."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat(40)
    inputs = torch.randn(120, 30, dtype=torch.float64, generator=draw)
    inputs += 2.0 * torch.nn.functional.one_hot(labels, 30).double()
    grid = [1.0, 0.5, 0.25, 0.1, 0.05, 0.02]
    found = {}
    for layers in (1, 2):
        limit, curve = _coverage_limit(
            inputs, labels, 8, layers, grid=grid, draws=3, loss=0.2,
            generator=torch.Generator().manual_seed(2),
        )  # fmt: skip
        dense = float(curve[0])
        threshold = dense - 0.2 * (dense - 1 / 3)
        i = next(i for i, value in enumerate(curve.tolist()) if value < threshold)
        share = (float(curve[i - 1]) - threshold) / float(curve[i - 1] - curve[i])
        expected = grid[i - 1] * (grid[i] / grid[i - 1]) ** share
        assert limit == pytest.approx(expected)
        found[layers] = limit
    # A path survives two layers with p²: the limit of two is about the root of that of one.
    assert found[2] > 1.5 * found[1]


def test_standard_errors_and_intervals_are_those_of_samples():
    values = torch.tensor([0.2, 0.5, 0.9, 0.4, 0.6, 0.1], dtype=torch.float64)
    error, reach = spread(values)
    assert error == pytest.approx(stats.sem(values.numpy()))
    low, high = stats.ttest_1samp(values.numpy(), 0.0).confidence_interval(0.95)
    assert reach == pytest.approx((high - low) / 2)
    assert spread(values[:4])[1] is None
    assert spread(values[:1]) == (None, None)


def test_gains_are_judged_by_paired_differences():
    from prunus.theory.at_init import simulate
    from prunus.theory.at_init.summary import summarise

    setting = Setting(classes=2, samples=16, dimension=60, neurons=3, signal=4.0, init_scale=0.1)
    with pytest.warns(RuntimeWarning, match="did not memorise"):  # its numbers are replaced below
        run = simulate(setting, [1.0, 0.5], seeds=5, steps=30)
    shifted = torch.linspace(0.4, 0.9, 5, dtype=torch.float64)
    own = torch.tensor([0.01, 0.03, 0.02, 0.04, 0.05], dtype=torch.float64)
    trained = torch.linspace(0.5, 1.0, 5, dtype=torch.float64)
    run = dataclasses.replace(
        run,
        test_accuracy=torch.stack([shifted, shifted + own]),
        train_accuracy=torch.stack([trained, trained]),
    )
    dense, pruned = summarise(run)
    assert pruned.gain == pytest.approx(0.03)
    assert pruned.gain_error == pytest.approx(stats.sem(own.numpy()))
    assert pruned.gain_interval == pytest.approx(spread(own)[1])
    assert pruned.accuracy_error == pytest.approx(stats.sem((shifted + own).numpy()))
    assert (dense.gain, dense.gain_error) == (0.0, 0.0)
    assert pruned.train_accuracy == pytest.approx(0.5)  # the lowest
