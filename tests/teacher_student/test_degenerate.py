"""Students that run parallel, copy each other or are silent, and teachers they all but equal."""

import math

import numpy as np
import pytest
import torch

from prunus.counting import count_of
from prunus.theory.teacher_student import (
    OrderParameters,
    generalisation_error,
    pruned_error,
    solve,
)
from prunus.theory.teacher_student.edges import keep_probabilities
from prunus.theory.teacher_student.relu import orthant_four, relu_gated_square


def order_of(w: torch.Tensor, star: torch.Tensor, v: torch.Tensor) -> OrderParameters:
    n = w.shape[1]
    ones = torch.ones(len(star), dtype=torch.float64)
    return OrderParameters(w @ w.T / n, w @ star.T / n, star @ star.T / n, v, ones)


def students(case: str) -> OrderParameters:
    g = torch.Generator().manual_seed(3)
    w = torch.randn(4, 100, generator=g, dtype=torch.float64)
    star = torch.randn(2, 100, generator=g, dtype=torch.float64)
    v = torch.rand(4, generator=g, dtype=torch.float64) + 0.5
    if "copy" in case:
        w[1] = w[0]
    if "scaled" in case:
        w[2] = -1.7 * w[0]
    if "silent" in case:
        w[3] = 0
    return order_of(w, star, v)


@pytest.mark.parametrize("case", ["plain", "copy", "scaled", "silent", "copy scaled silent"])
@pytest.mark.parametrize("activation", ["erf", "relu", "linear"])
def test_keeping_every_node_changes_nothing(case, activation):
    order = students(case)
    whole = float(generalisation_error(order, activation=activation))
    for method in ("random-node", "importance-node", "dpp-node"):
        for kernel in ("preact", "act", "output", "rbf") if method == "dpp-node" else ("preact",):
            for reweight in (None, "preact", "act"):
                found = pruned_error(
                    order, method, 4, activation=activation, kernel=kernel, reweight=reweight
                )
                assert float(found) == pytest.approx(whole, rel=1e-9), (method, kernel, reweight)
    for kept in (1, 2):
        assert math.isfinite(pruned_error(order, "random-node", kept, reweight="preact"))


def test_what_is_removed_is_regressed_on_what_stays():
    """With the copy removed its twin carries both readouts: nothing is lost."""
    order = students("copy")
    for mode in ("preact", "act"):
        found = pruned_error(order, "importance-node", 3, score=[3, 0, 2, 1], reweight=mode)
        assert float(found) == pytest.approx(float(generalisation_error(order)), rel=1e-9)


@pytest.mark.parametrize("inputs", [10, 50, 78, 784])
def test_kept_counts_are_those_of_every_budget(inputs):
    w = torch.randn(2, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for hundredth in range(1, 101):
        p = hundredth / 100
        if count_of(p, inputs) == inputs:
            continue
        kept = keep_probabilities(w, "magnitude", p).sum(1)
        assert kept.tolist() == [count_of(p, inputs)] * 2, p


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5, 1e-7])
def test_four_orthant_of_two_nearly_equal_pairs(gap):
    """Independent pairs of correlation r: (1/4 + asin(r) / 2π)², whatever r."""
    r = 1 - gap
    block = np.array([[1, r], [r, 1]])
    covariance = np.kron(np.eye(2), block)[None]
    assert orthant_four(covariance)[0] == pytest.approx(
        (0.25 + math.asin(r) / (2 * math.pi)) ** 2, abs=1e-8
    )


@pytest.mark.parametrize("gap", [1e-4, 1e-6])
def test_four_orthant_tends_to_that_of_three(gap):
    """A fourth field that all but equals the third adds nothing but O(√gap)."""
    three = np.array([[1.0, 0.3, -0.2], [0.3, 1.0, 0.4], [-0.2, 0.4, 1.0]])
    angles = [math.asin(three[i, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    octant = 0.125 + sum(angles) / (4 * math.pi)
    r = 1 - gap
    four = np.eye(4)
    four[:3, :3] = three
    four[3, :2] = four[:2, 3] = r * three[2, :2]
    four[3, 2] = four[2, 3] = r
    lost = octant - orthant_four(four[None])[0]
    assert 0 < lost < math.acos(r) / (2 * math.pi)


def near(distance: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    star = rng.normal(size=(2, 100))
    rng.normal(size=(4, 100))  # the draws from which the simulated levels below were started
    w = np.stack([star[i % 2] + distance * rng.normal(size=100) for i in range(4)])
    fields = np.concatenate([w, star])
    return fields @ fields.T / 100, np.array([0.5] * 4 + [-1.0] * 2)


@pytest.mark.parametrize("distance", [1.0, 0.1, 0.01, 1e-4])
def test_noise_matrix_is_an_average_of_squares(distance):
    covariance, readout = near(distance)
    found = relu_gated_square(covariance, readout, 4)
    assert np.linalg.eigvalsh(found)[0] > -1e-6 * np.trace(found)
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(covariance)
    x = rng.normal(size=(200_000, 6)) @ (vectors * np.sqrt(np.maximum(values, 0))).T
    error = np.maximum(x, 0) @ readout
    gates = (x[:, :4] > 0) * error[:, None]
    drawn = gates.T @ gates / len(x)
    # Relative standard error of ⟨Δ²⟩ over 2·10⁵ draws is below 1 %: five of them, and the points'
    # own half per cent.
    np.testing.assert_allclose(found, drawn, rtol=0.055)


def test_error_near_parallel_students_stays_positive():
    """The level that simulations reach (1.69e-5, 4.6e-6, 6.5e-7 at α = 2, 10, 30)."""
    covariance, readout = near(0.01)
    order = OrderParameters(
        covariance[:4, :4], covariance[:4, 4:], covariance[4:, 4:], readout[:4], np.ones(2)
    )
    found = solve(
        order, until=30.0, rate=0.4, readout_rate=0.2, activation="relu", times=[0, 2, 10, 30]
    ).errors.tolist()
    assert found[0] > found[1] > found[2] > found[3] > 0
    np.testing.assert_allclose(found[1:], [1.69e-5, 4.6e-6, 6.5e-7], rtol=0.15)


def test_an_error_of_nothing_is_not_below_zero():
    g = torch.Generator().manual_seed(1)
    star = torch.randn(3, 50, generator=g, dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    for activation in ("erf", "relu", "linear"):
        order = order_of(star, star, ones)
        assert 0 <= float(generalisation_error(order, activation=activation)) < 1e-14


def test_a_silent_student_cannot_be_normalised():
    with pytest.raises(ValueError, match=r"index 3\) cannot be normalised. Leave it out"):
        pruned_error(students("silent"), "random-node", 2, normalise=True)
