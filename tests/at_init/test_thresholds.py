"""Thresholds and probabilities against deterministic values and sampled masks."""

import itertools
import math

import pytest
import torch

from prunus.theory.at_init import (
    information_bounds,
    over_pruned_probability,
    p_keep,
    p_mild,
    p_over,
    path_loss_probability,
    retention,
    signal_loss_probability,
    visible_classes,
)
from reference.at_init import path_is_lost


@pytest.mark.parametrize(
    ("arguments", "value"),
    [((50, 4, 0.01), 0.11286135), ((100, 10, 0.05), 0.05138613), ((50, 4, 0.01, 5), 0.02366625)],
)
def test_p_keep_values(arguments, value):
    assert p_keep(*arguments) == pytest.approx(value, abs=1e-7)


def test_p_keep_is_the_exact_threshold():
    for neurons, classes, delta, support in itertools.product(
        (3, 50), (2, 10), (1e-6, 0.5), (1, 4)
    ):
        at = signal_loss_probability(
            p_keep(neurons, classes, delta, support), neurons, classes, support
        )
        assert at.any_class == pytest.approx(delta, rel=1e-9)


def test_p_mild_and_p_over_values():
    assert p_mild(50, 4096) == pytest.approx(0.16635532, rel=1e-7)
    assert p_mild(2, 4096) == 1.0
    assert p_over(4, 50, 4096) == pytest.approx(6.0112293e-4, rel=1e-7)


def test_signal_loss_values():
    per_class = [signal_loss_probability(p, 50, 4).per_class for p in (0.2, 0.1, 0.05, 0.01)]
    assert per_class == pytest.approx([1.427e-5, 0.0051538, 0.0769450, 0.6050061], abs=1e-6)
    assert signal_loss_probability(0.1, 50, 4).all_kept == pytest.approx(0.97954372, abs=1e-7)
    assert signal_loss_probability(1.0, 50, 4).all_kept == 1


def test_signal_loss_is_accurate_for_tiny_densities():
    # 1 - (1 - 1e-12)^3 by its series, which floating-point subtraction would lose
    loss = signal_loss_probability(1e-12, 3, 2)
    assert 1 - loss.per_class == pytest.approx(3e-12, rel=1e-3)
    assert loss.all_kept == pytest.approx(9e-24, rel=1e-3)
    # negative control: the naive form is wrong by more than this test allows
    assert 1 - (1 - 1e-17) ** 3 == 0


def test_over_pruned_probability_is_that_of_the_abstract():
    p = p_over(4, 50, 4096)
    seen = 1 - over_pruned_probability(p, 4, 50)
    assert 0 < seen <= 4 / math.log(4096)
    own = 1 - signal_loss_probability(p, 50, 4).per_class ** 4
    assert own <= 1 / math.log(4096)


def test_counts_of_masks_agree_with_the_coupon_collector():
    generator = torch.Generator().manual_seed(3)
    draws, m, k, s, p = 20000, 6, 3, 2, 0.12
    kept = torch.rand(draws, k, m * s, generator=generator) < p
    lost = ~kept.any(2)  # draws × classes
    law = signal_loss_probability(p, m, k, s)

    def excess(chance):
        count = int(lost.any(1).sum())
        return abs(count - draws * chance) / math.sqrt(draws * chance * (1 - chance))

    assert excess(law.any_class) < 5, "false alarm 6e-7"
    assert excess(signal_loss_probability(p, m + 1, k, s).any_class) > 5  # negative control


@pytest.mark.parametrize(
    ("density", "support", "widths", "value"),
    [(0.1, 5, [30], 0.285249), (0.15, 3, [20, 20], 0.117875), (0.08, 12, [100], 0.00556586)],
)
def test_path_loss_values(density, support, widths, value):
    assert path_loss_probability(density, widths, support) == pytest.approx(value, abs=1e-6)


def test_path_loss_against_sampled_masks():
    generator = torch.Generator().manual_seed(1)
    draws, density, widths, support = 4000, 0.25, [6, 5], 3
    chance = path_loss_probability(density, widths, support)
    count = sum(path_is_lost(density, widths, support, generator) for _ in range(draws))
    spread = math.sqrt(draws * chance * (1 - chance))
    assert abs(count - draws * chance) < 5 * spread, "false alarm 6e-7"
    wrong = path_loss_probability(density, [6, 3], support)  # negative control
    assert abs(count - draws * wrong) > 5 * spread


def test_path_loss_falls_with_density():
    losses = [path_loss_probability(p, [20, 10], 4) for p in (0.01, 0.05, 0.2, 0.6, 1.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_information_bounds():
    none = information_bounds(0, 10)
    assert (none.accuracy, none.loss) == (0.1, pytest.approx(math.log(10)))
    assert information_bounds(10, 10).accuracy == 1
    assert information_bounds(9, 10).loss == 0
    assert information_bounds(2, 4).loss == pytest.approx(0.5 * math.log(2))


def test_visible_classes_reads_every_neuron():
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[5, 1] = True  # support 2: column 1 belongs to class 0
    mask[0, 4] = True
    mask[:, 7] = True  # a noise coordinate
    assert visible_classes(mask, 3, support=2) == [0, 2]
    with pytest.raises(ValueError, match="at least classes · support = 12 columns"):
        visible_classes(mask, 6, support=2)


def test_retention():
    assert retention(1.0, 3.0) == 1.0
    assert retention(0.1, 5.0) == pytest.approx(5 / 5.9)
    assert retention(0.1, 0.0) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: p_keep(0, 4), "`neurons` must be a whole number >= 1"),
        (lambda: p_keep(5, 1), "`classes` must be a whole number >= 2"),
        (lambda: p_keep(5, 4, 1.0), r"`delta` must lie in \(0, 1\)"),
        (lambda: p_keep(5, 4, 0.1, 0), "`support` must be a whole number >= 1"),
        (lambda: p_mild(5, 100, -1.0), "`constant` must be a finite number > 0"),
        (lambda: signal_loss_probability(0.0, 5, 4), "Nothing would be kept"),
        (lambda: signal_loss_probability(math.nan, 5, 4), r"in \(0, 1\], got nan"),
        (lambda: signal_loss_probability(1.5, 5, 4), r"in \(0, 1\], got 1.5"),
        (lambda: signal_loss_probability(0.5, 5, 1), "`classes` must be a whole number >= 2"),
        (lambda: signal_loss_probability(0.5, 5, 4, 0), "`support` must be a whole number >= 1"),
        (lambda: path_loss_probability(0.5, [], 1), "at least one hidden width"),
        (lambda: path_loss_probability(0.5, [3, 0], 1), "`widths` must be a whole number >= 1"),
        (lambda: information_bounds(5, 4), r"`visible` must be a whole number in \[0, 4\]"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
