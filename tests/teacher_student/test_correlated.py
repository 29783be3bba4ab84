"""Correlated inputs: reference values, real masks at finite N, and Monte Carlo errors."""

import math

import numpy as np
import pytest
import torch

from prunus.theory.teacher_student import (
    Weights,
    apply_mask,
    correlated_order,
    draw_edge_mask,
    generalisation_error,
    order_parameters,
    random_edge_correlated,
    reweight_edges,
    spectral_shift,
)
from teacher_student.students import near


def generator(seed):
    return torch.Generator().manual_seed(seed)


def haar(size, seed):
    return torch.linalg.qr(torch.randn(size, size, generator=generator(seed), dtype=torch.float64))[
        0
    ]


def covariance_of(spectrum, seed):
    rotation = haar(len(spectrum), seed)
    return (rotation * torch.as_tensor(spectrum)) @ rotation.T


def student(inputs, seed, students=3, overlap=0.8):
    """Three students near one teacher; coordinates standard normal."""
    teacher = torch.randn(1, inputs, generator=generator(seed), dtype=torch.float64)
    noise = torch.randn(students, inputs, generator=generator(seed + 1), dtype=torch.float64)
    mixed = overlap * teacher + math.sqrt(1 - overlap**2) * noise
    return Weights(mixed, teacher, torch.ones(students) / students, [1.0])


def test_two_level_spectrum():
    near(spectral_shift([0.5, 1.5], 0.5), math.sqrt(3) / 2, atol=1e-12)
    assert spectral_shift([0.5, 1.5], 1) == 0
    # w with equal weight in both eigenspaces: R′ and Q′ are averages over the spectrum.
    values = torch.tensor([0.5, 1.5, 0.5, 1.5], dtype=torch.float64)
    q = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    first = torch.ones(4, dtype=torch.float64)
    second = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    weights = Weights(
        torch.stack([first, 0.5 * first + math.sqrt(0.75) * second]), first[None], [1, 1], [1]
    )
    kept = random_edge_correlated(weights, torch.diag(values), 0.5, reweight=True)
    near(kept.R[:, 0], 0.566987 * q[0], atol=1e-6)
    near(kept.Q, [[0.566987, 0.334936 * 0.5], [0.334936 * 0.5, 0.566987]], atol=1e-6)
    plain = random_edge_correlated(weights, torch.diag(values), 0.5)
    near(plain.R[:, 0], 0.5 * q[0], atol=1e-12)
    near(plain.Q[0, 1], 0.25 * 0.5, atol=1e-12)


def test_no_correlation_is_the_ordinary_theory():
    weights = student(50, 1)
    eye = torch.eye(50, dtype=torch.float64)
    near(correlated_order(weights, eye).Q, order_parameters(weights).Q)
    # With C = I, κ = (1 − p)/p and least squares changes nothing.
    plain, refit = (random_edge_correlated(weights, eye, 0.3, reweight=r) for r in (False, True))
    near(plain.Q, refit.Q, atol=1e-10)
    near(plain.R, refit.R, atol=1e-10)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("reweight", [False, True])
def test_real_masks_meet_the_large_size_formulas(density, reweight):
    inputs = 400
    weights = student(inputs, 3)
    spectrum = np.concatenate([np.full(200, 0.2), np.full(200, 1.8)])
    covariance = covariance_of(spectrum, 7)
    errors = []
    for n in range(6):
        mask = draw_edge_mask(weights, "random", density, generator=generator(10 + n))
        pruned = apply_mask(weights, mask)
        if reweight:
            pruned = reweight_edges(weights, mask, covariance)
            assert not pruned.student[~mask].any()
        errors.append(float(generalisation_error(correlated_order(pruned, covariance))))
    theory = random_edge_correlated(weights, covariance, density, reweight=reweight)
    assert float(generalisation_error(theory)) == pytest.approx(np.mean(errors), rel=0.05)
    other = random_edge_correlated(weights, covariance, density, reweight=not reweight)
    assert abs(float(generalisation_error(other)) / np.mean(errors) - 1) > 0.05  # control


def test_reweighting_is_least_squares():
    weights = student(8, 3)
    covariance = covariance_of(np.linspace(0.2, 2, 8), 1)
    mask = torch.rand(3, 8, generator=generator(2)) < 0.6
    found = reweight_edges(weights, mask, covariance)
    x = torch.linalg.cholesky(covariance).T  # XᵀX = C: eight samples stand for the covariance
    for node in range(3):
        kept = mask[node]
        solved = torch.linalg.lstsq(x[:, kept], x @ weights.student[node]).solution
        near(found.student[node, kept], solved, atol=1e-10)


def test_errors_of_correlated_inputs_meet_monte_carlo():
    """5 standard errors on 200 000 samples, false alarm 6e-7."""
    weights = student(12, 5)
    covariance = covariance_of(np.linspace(0.1, 2, 12), 3)
    x = torch.randn(200_000, 12, generator=generator(8), dtype=torch.float64)
    x = x @ torch.linalg.cholesky(covariance).T / math.sqrt(12)
    output = torch.erf(x @ weights.student.T / math.sqrt(2)) @ weights.v
    half = 0.5 * (output - torch.erf(x @ weights.teacher[0] / math.sqrt(2))).square()
    found = float(generalisation_error(correlated_order(weights, covariance)))
    assert abs(float(half.mean()) - found) < 5 * float(half.std()) / math.sqrt(len(half))
    control = float(generalisation_error(order_parameters(weights)))
    assert abs(float(half.mean()) - control) > 5 * float(half.std()) / math.sqrt(len(half))


def test_bad_input():
    weights = student(8, 3)
    with pytest.raises(ValueError, match=r"`covariance` must have shape \(8, 8\)"):
        correlated_order(weights, torch.eye(3))
    with pytest.raises(ValueError, match="`spectrum` must be positive"):
        spectral_shift([0.0, 1.0], 0.5)
    with pytest.raises(ValueError, match="must be positive definite on the kept inputs of node 0"):
        reweight_edges(weights, torch.ones(3, 8), torch.ones(8, 8))
    with pytest.raises(ValueError, match=r"`density` must lie in \(0, 1\]"):
        random_edge_correlated(weights, torch.eye(8), 0)
