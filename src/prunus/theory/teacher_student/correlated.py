"""Inputs with correlations, x ~ N(0, C_x): exact order parameters and random edges for large N.

Every error formula holds for the fields' covariance, Q = w C_x wᵀ/N and so on. Learning does not
close in Q and R then, and is not treated.
"""

from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from prunus.check import as_float64, fraction
from prunus.theory.teacher_student.order import OrderParameters, Weights

__all__ = [
    "correlated_order",
    "random_edge_correlated",
    "reweight_edges",
    "spectral_shift",
]


def correlated_order(weights: Weights, covariance: Any) -> OrderParameters:
    """Q = w C wᵀ/N, R = w C w*ᵀ/N, T = w* C w*ᵀ/N of one seed's weights."""
    matrix = _covariance(weights, covariance)
    inputs, student, teacher = weights.student.shape[1], weights.student, weights.teacher
    filtered = student @ matrix
    overlap, power = filtered @ student.T / inputs, teacher @ matrix @ teacher.T / inputs
    return OrderParameters(
        (overlap + overlap.T) / 2,
        filtered @ teacher.T / inputs,
        (power + power.T) / 2,
        weights.v,
        weights.v_star,
    )


def reweight_edges(weights: Weights, mask: Any, covariance: Any) -> Weights:
    """Least squares on the pre-activations after given masks: w_S + C_SS⁻¹ C_SD w_D per node.

    Raises:
        ValueError: shapes that do not fit, or an input covariance that is not positive definite
            on a kept set.
    """
    matrix = _covariance(weights, covariance)
    given = torch.as_tensor(mask).bool()
    if tuple(given.shape) != tuple(weights.student.shape):
        raise ValueError(
            f"`mask` must have shape {tuple(weights.student.shape)}, got {tuple(given.shape)}."
        )
    student = torch.zeros_like(weights.student)
    target = weights.student @ matrix
    for node, kept in enumerate(given):
        if bool(kept.any()):
            # w_S + C_SS⁻¹ C_SD w_D = C_SS⁻¹ (C w)_S
            root, failed = torch.linalg.cholesky_ex(matrix[kept][:, kept])
            if int(failed):
                raise ValueError(
                    f"`covariance` must be positive definite on the kept inputs of node {node}. "
                    f"Add a small ridge to its diagonal."
                )
            solved = torch.cholesky_solve(target[node, kept][:, None], root)
            student[node, kept] = solved[:, 0]
    return Weights(student, weights.teacher, weights.v, weights.v_star)


def spectral_shift(spectrum: Any, density: float) -> float:
    """κ with (1/N) Σ_n c_n/(c_n + κ) = p over the eigenvalues c of the input covariance."""
    values = as_float64("spectrum", spectrum, dims=1)
    p = fraction("density", density, one=True)
    if float(values.min()) <= 0:
        raise ValueError(
            f"`spectrum` must be positive, got a smallest eigenvalue of {float(values.min()):.3g}. "
            f"Add a small ridge."
        )
    if p == 1:
        return 0.0
    top = float(values.max())

    def excess(kappa: float) -> float:
        return float((values / (values + kappa)).mean()) - p

    return float(brentq(excess, 0.0, top / p, xtol=1e-14 * top, rtol=1e-14))


def random_edge_correlated(
    weights: Weights, covariance: Any, density: float, *, reweight: bool = False
) -> OrderParameters:
    """Order parameters after independent random edge masks under correlated inputs, for large N.

    The eigenvectors of C must be in general position to the coordinate axes.

    Without reweighting: R′ = p R, Q′_ij = p² Q_ij, Q′_ii = p² Q_ii + p(1−p) Σ_s w_is² C_ss/N.
    With it, and κ of `spectral_shift`: R′_in = w_i C²(C+κ)⁻¹ w*_n/N, Q′_ii = w_i C²(C+κ)⁻¹ w_i/N,
    Q′_ij = w_i C³(C+κ)⁻² w_j/N.

    Args:
        weights: one seed's weights before pruning.
        covariance: C of the inputs, N × N.
        density: p, the kept fraction of each node's weights.
        reweight: least squares on each node's pre-activation.

    References:
        Derived in docs/teacher_student.md.
    """
    matrix = _covariance(weights, covariance)
    p = fraction("density", density, one=True)
    student, inputs = weights.student, weights.student.shape[1]
    if not reweight:
        plain = correlated_order(weights, matrix)
        own = (student.square() @ matrix.diagonal()) / inputs
        overlap = p * p * plain.Q + torch.diag(p * (1 - p) * own)
        return OrderParameters(overlap, p * plain.R, plain.T, weights.v, weights.v_star)
    values, vectors = torch.linalg.eigh(matrix)
    kappa = spectral_shift(values, p)
    turned = student @ vectors
    once = (turned * (values**2 / (values + kappa))) @ vectors.T
    twice = (turned * (values**3 / (values + kappa) ** 2)) @ turned.T / inputs
    own = (turned.square() @ (values**2 / (values + kappa))) / inputs
    overlap = twice - torch.diag(twice.diagonal()) + torch.diag(own)
    teacher = weights.teacher
    return OrderParameters(
        (overlap + overlap.T) / 2,
        once @ teacher.T / inputs,
        teacher @ matrix @ teacher.T / inputs,
        weights.v,
        weights.v_star,
    )


def _covariance(weights: Weights, covariance: Any) -> Float[Tensor, "N N"]:
    matrix = as_float64("covariance", covariance, dims=2)
    if weights.student.ndim != 2:
        raise ValueError(
            f"`weights` must hold one seed, got student weights of shape "
            f"{tuple(weights.student.shape)}."
        )
    inputs = weights.student.shape[1]
    if tuple(matrix.shape) != (inputs, inputs):
        raise ValueError(
            f"`covariance` must have shape {(inputs, inputs)}, got {tuple(matrix.shape)}."
        )
    return matrix
