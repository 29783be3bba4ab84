"""The two estimators of how far a network may be pruned, and their bad inputs."""

import math

import pytest
import torch

from prunus.theory.at_init import (
    coverage_limit,
    effective_support,
    hard_limit,
    path_loss_probability,
    safe_density,
)
from prunus.theory.at_init.safe import _leave_one_out
from reference.at_init import path_is_lost, ridge_leave_one_out


def blobs(per_class=20, features=30, distance=4.0, classes=3, seed=0):
    """Classes on single coordinates, in unit noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(per_class * classes) % classes
    inputs = torch.randn(len(labels), features, generator=generator, dtype=torch.float64)
    inputs[torch.arange(len(labels)), labels] += distance
    return inputs, labels


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="the extra `data` is not installed")
    inputs, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:300].numpy()
    return inputs[order], labels[order]


def test_digits_limits(digits):
    found = safe_density(*digits, [100])
    print(
        f"digits, [100]: hard limit {found.hard_limit:.4f}, coverage limit "
        f"{found.coverage_limit:.4f}, safe {found.density:.4f}, paths {found.paths:.2f}"
    )
    assert 0.06 <= found.hard_limit <= 0.09
    assert 0.06 <= found.coverage_limit <= 0.10
    assert found.density == pytest.approx(2.1 * max(found.hard_limit, found.coverage_limit))
    assert found.paths == pytest.approx(100 * found.density**2)
    assert "random masks" in found.note


def test_one_generator_one_answer(digits):
    found = [
        safe_density(
            *digits, [100], points=6, draws=1, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (3, 3, 4)
    ]
    torch.testing.assert_close(found[0].accuracy, found[1].accuracy, rtol=0, atol=0)
    assert not torch.equal(found[0].accuracy, found[2].accuracy)


def test_hard_limit_solves_its_equation():
    for widths, support, layers in (([30], 5, None), ([20, 20], 3, None), ([50, 8], 4, 1)):
        p = hard_limit(widths, support, 10, pruned_layers=layers)
        lost = path_loss_probability(p, widths, support, pruned_layers=layers)
        assert 10 * lost == pytest.approx(0.1, rel=1e-3)
    p = hard_limit([20], 2, 4, private=True)
    assert 4 * (1 - p) ** 40 == pytest.approx(0.1, rel=1e-3)


def test_first_layer_only():
    """With later layers whole, only the first one can cut the signal off."""
    p, width, s = 0.1, 12, 2
    lost = path_loss_probability(p, [width, 7], s, pruned_layers=1)
    assert lost == pytest.approx((1 - p) ** (width * s), rel=1e-12)
    with pytest.raises(ValueError, match=r"`pruned_layers` must be .* in \[1, 3\]"):
        path_loss_probability(p, [width, 7], s, pruned_layers=4)


def test_hard_limit_against_sampled_networks():
    """At the limit the union of K classes is lost with probability at most 0.1."""
    generator = torch.Generator().manual_seed(5)
    classes, widths, support = 4, [8], 3
    p = hard_limit(widths, support, classes)
    draws = 3000
    lost = sum(path_is_lost(p, widths, support, generator) for _ in range(draws))
    chance = 0.1 / classes
    assert abs(lost - draws * chance) < 5 * math.sqrt(draws * chance), "false alarm 6e-7"


def test_effective_support_of_known_means():
    inputs, labels = blobs(per_class=2000, distance=5.0)
    # class k differs from the mean of 3 by (2/3, -1/3, -1/3) of 5 on three coordinates
    energy = torch.tensor([4 / 9, 1 / 9, 1 / 9]) * 25
    exact = float(energy.sum() ** 2 / energy.square().sum())
    torch.testing.assert_close(
        effective_support(inputs, labels),
        torch.full((3,), exact, dtype=torch.float64),
        rtol=0.03,  # the means of 2000 points
        atol=0,
    )


def test_leave_one_out_is_refitting():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    kernel = x @ x.T + 0.5
    torch.testing.assert_close(
        _leave_one_out(kernel, target, 0.3)[:, 0], ridge_leave_one_out(kernel, target[:, 0], 0.3)
    )


def test_coverage_limit_is_the_crossing():
    inputs, labels = blobs()
    limit, curve = coverage_limit(inputs, labels, 40, 1, densities=[0.5, 0.1, 0.02, 0.004], draws=8)
    assert len(curve) == 5  # the dense network is evaluated too
    assert 0.004 <= limit < 1
    assert float(curve[0]) > float(curve[-1])
    wider, _ = coverage_limit(
        inputs, labels, 400, 1, densities=[0.5, 0.1, 0.02, 0.004, 4e-4], draws=8
    )
    assert wider < limit  # ten times the paths let ten times more be pruned
    assert wider == pytest.approx(limit / 10, rel=0.8)


def test_many_paths_are_poisson():
    inputs, labels = blobs()
    grid = [1e-5, 1e-6, 1e-7]
    curves = [
        coverage_limit(inputs, labels, paths, 1, densities=grid, draws=200)[1]
        for paths in (10**6, 10**6 + 1)  # binomial and Poisson draws of the same law
    ]
    # one draw's accuracy spreads by at most 0.15, so a mean of 200 by 0.011: 4 errors of 2 means
    torch.testing.assert_close(*curves, rtol=0, atol=0.06)


def test_private_network_of_the_model():
    inputs, labels = blobs(distance=8.0)
    found = safe_density(inputs, labels, [20], private=True, draws=2, points=6)
    assert found.paths == pytest.approx(20 * found.density)
    with pytest.raises(ValueError, match="`private` means one hidden layer"):
        safe_density(inputs, labels, [20, 20], private=True)


def test_nothing_may_be_pruned():
    inputs, labels = blobs(distance=3.0)
    with pytest.warns(RuntimeWarning, match=r"No density below 1 is safe for widths \[1\]"):
        assert safe_density(inputs, labels, [1], points=4, draws=1).density == 1


def test_large_data_are_subsampled_by_class():
    inputs, labels = blobs(per_class=400)
    found = safe_density(inputs, labels, [30], points=3, draws=1)
    # accuracies are multiples of 1/501: 167 of each class
    assert float(found.accuracy[1] * 501) == pytest.approx(round(float(found.accuracy[1] * 501)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": lambda x: x.fill_(math.nan)}, "`inputs` must be finite, got nan"),
        ({"inputs": lambda x: x.index_fill_(0, torch.tensor([1]), math.inf)}, "got inf at index"),
        ({"inputs": lambda x: x[:, 0]}, "`inputs` must have shape"),
        ({"labels": lambda y: y[:-1]}, "one per sample"),
        ({"labels": lambda y: y * 0.5}, "`labels` must be whole numbers"),
        ({"labels": lambda y: y + 1}, r"got \[1, 2, 3\]. Relabel with torch.unique"),
        ({"labels": lambda y: y * 0}, "at least 2 classes, got 1"),
        (
            {"labels": lambda y: torch.where(torch.arange(60) == 5, 2, y * 0 + y % 2)},
            "got 1 of class 2",
        ),
        ({"widths": []}, "at least one hidden width"),
        ({"widths": [10, 0]}, "`widths` must be a whole number >= 1"),
        ({"pruned_layers": 3}, r"`pruned_layers` must be .* in \[1, 2\]"),
        ({"points": 1}, "`points` must be a whole number >= 2"),
        ({"loss": 0.0}, r"`loss` must lie in \(0, 1\)"),
    ],
)
def test_bad_arguments(change, message):
    inputs, labels = blobs()
    call = {"inputs": inputs, "labels": labels, "widths": [10]}
    for name, value in change.items():
        call[name] = value(call[name]) if callable(value) else value
    with pytest.raises(ValueError, match=message):
        safe_density(**call)
