"""The ReLU four-point average ⟨Θ(x_i) Θ(x_k) x_c⁺ x_d⁺⟩: a one-dimensional integral at worst."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from prunus.theory.teacher_student.points import gaussian_fields

Branch = Callable[[ndarray, ndarray, ndarray, ndarray], ndarray]  # (i, k, c, d) to values

__all__ = ["orthant_four", "relu_four_point", "relu_gated_square"]

FLOOR = 1e-30  # conditional variances below it belong to a repeated unit
NODES = 16  # Gauss–Legendre nodes of the Plackett integral: 1e-10 on generic covariances
GENERIC = 0.05  # least eigenvalue of a correlation matrix up to which it is not
PANEL_RATIO, PANELS = 0.25, 14  # of the graded rule for the others: (1 − u) down to 4⁻¹³
CANCELLED = 1e-4  # share of its terms that the squared error keeps; below, points are better
EXACT_LIMIT = 8  # students up to which the noise matrix is exact
POINTS = 2**15  # fixed quasi-random points above that: the noise matrix to about 5e-3


def relu_four_point(
    covariance: Float[ndarray, "P P"], index: Int[ndarray, "n 4"]
) -> Float[ndarray, " n"]:
    """⟨Θ(x_i) Θ(x_k) x_c⁺ x_d⁺⟩ for each row (i, k, c, d) of `index`; indices may repeat.

    Repeated indices have elementary forms, chosen by equality of the *indices*; four different
    ones need the orthant probability of `orthant_four`.

    References:
        Cho & Saul (2009); Plackett (1954). Derived in docs/teacher_student.md.
    """
    values = np.empty(len(index))
    i, k, c, d = index.T
    # Fields in an order in which c, if either, is the one that repeats a gate.
    swap = (d == i) | (d == k)
    c, d = np.where(swap, d, c), np.where(swap, c, d)
    # Gates in an order in which i, if either, is the one that c repeats.
    swap = c == k
    i, k = np.where(swap, k, i), np.where(swap, i, k)
    one_gate = i == k
    c_in, d_in, same = c == i, (d == i) | (d == k), c == d
    diagonal = covariance.diagonal()
    branches: list[tuple[ndarray, Branch]] = [
        (one_gate & c_in & same, lambda i, k, c, d: diagonal[i] / 2),
        (one_gate & c_in & ~same, lambda i, k, c, d: _pair(covariance, c, d)),
        (one_gate & ~c_in & same, lambda i, k, c, d: _square(covariance, i, c)),
        (one_gate & ~c_in & ~same, lambda i, k, c, d: _gated_pair(covariance, i, c, d)),
        (~one_gate & c_in & d_in & same, lambda i, k, c, d: _square(covariance, k, c)),
        (~one_gate & c_in & d_in & ~same, lambda i, k, c, d: _pair(covariance, i, k)),
        (~one_gate & c_in & ~d_in, lambda i, k, c, d: _gated_pair(covariance, k, c, d)),
        (~one_gate & ~c_in & same, lambda i, k, c, d: _two_gates(covariance, i, k, c)),
        (~one_gate & ~c_in & ~same, lambda i, k, c, d: _distinct(covariance, i, k, c, d)),
    ]
    for chosen, value in branches:
        if chosen.any():
            values[chosen] = value(i[chosen], k[chosen], c[chosen], d[chosen])
    return values


def relu_gated_square(
    covariance: Float[ndarray, "P P"], readout: Float[ndarray, " P"], students: int
) -> Float[ndarray, "K K"]:
    """⟨Θ(λ_i) Θ(λ_k) Δ²⟩: exact up to 8 students, by fixed quasi-random points above.

    Where student and teacher all but agree, Δ² is a small difference of large terms and rounding
    would leave a matrix that no average of squares can be. Points keep the relative accuracy (and
    the matrix positive semi-definite) however small Δ is, so they take over below a share of 1e-4.
    """
    if students > EXACT_LIMIT:
        return _gated_square_of_points(covariance, readout, students)
    index, twice = _quadruples(students, len(readout))
    cell = index[:, 0] * students + index[:, 1]
    terms = relu_four_point(covariance, index) * twice
    terms *= readout[index[:, 2]] * readout[index[:, 3]]
    flat = np.bincount(cell, weights=terms, minlength=students**2)
    size = np.bincount(cell, weights=np.abs(terms), minlength=students**2)
    diagonal = np.arange(students) * (students + 1)
    if (flat[diagonal] < CANCELLED * size[diagonal]).any():
        return _gated_square_of_points(covariance, readout, students)
    upper = flat.reshape(students, students)
    return upper + np.triu(upper, 1).T


def _gated_square_of_points(
    covariance: Float[ndarray, "P P"], readout: Float[ndarray, " P"], students: int
) -> Float[ndarray, "K K"]:
    """⟨Θ(λ_i) Θ(λ_k) Δ²⟩ as the mean over fixed quasi-random points, about 5e-3 relative."""
    fields = gaussian_fields(covariance, POINTS)
    gates = (fields[:, :students] > 0).astype(float)
    error = np.maximum(fields, 0.0) @ readout
    sampled: ndarray = (gates * (error**2)[:, None]).T @ gates / len(fields)
    return sampled


def orthant_four(covariance: Float[ndarray, "n 4 4"]) -> Float[ndarray, " n"]:
    """P(x > 0) for four Gaussians, along the path from independence to `covariance`.

    O4 = 1/16 + ∫₀¹ dt Σ_{a<b} C_ab p_ab(t) O2(the others | x_a = x_b = 0; t), with
    t = 1 − (1 − u)² and Gauss–Legendre nodes in u. Nearly dependent fields bend the integrand
    within a distance of t = 1 that is as small as their distance: panels that shrink towards it
    by a factor 4 follow any of these scales.

    References:
        Plackett (1954), A reduction formula for normal multivariate integrals.
    """
    spread = np.sqrt(np.maximum(np.einsum("naa->na", covariance), FLOOR))
    correlation = covariance / (spread[:, :, None] * spread[:, None, :])
    total = np.empty(len(covariance))
    close = np.linalg.eigvalsh(correlation)[:, 0] < GENERIC
    for rows, rule in ((~close, _nodes(graded=False)), (close, _nodes(graded=True))):
        if rows.any():
            total[rows] = _plackett(correlation[rows], *rule)
    return 1 / 16 + total


@lru_cache(maxsize=2)
def _nodes(graded: bool) -> tuple[ndarray, ndarray]:
    """√(1 − t) of the times t in (0, 1) of the Plackett integral, and their measures dt."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    if not graded:
        left = 1 - 0.5 * (nodes + 1)
        return left, weights * left
    edges = np.concatenate([PANEL_RATIO ** np.arange(PANELS), [0.0]])
    half = 0.5 * (edges[:-1] - edges[1:])
    left = (edges[1:, None] + half[:, None] * (nodes + 1)).ravel()
    return left, 2 * left * (half[:, None] * weights).ravel()


def _plackett(
    correlation: Float[ndarray, "n 4 4"],
    left: Float[ndarray, " nodes"],
    measure: Float[ndarray, " nodes"],
) -> Float[ndarray, " n"]:
    """∫ dt Σ_{a<b} C_ab p_ab(t) O2(the others | x_a = x_b = 0; t) by the given rule.

    With s the sign of C_ab, 1 − t|C_ab| = (1 − |C_ab|) + |C_ab| (1 − t) and differences such as
    C_ea − s C_eb keep the digits that 1 − t² C_ab² would lose where x_a and x_b all but agree.
    """
    time = 1 - left**2
    total = np.zeros(len(correlation))
    for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        e, f = (j for j in range(4) if j not in (a, b))
        rho = correlation[:, a, b, None]
        sign, size = np.where(rho < 0, -1.0, 1.0), np.abs(rho)
        ea, eb = correlation[:, e, a, None] * time, correlation[:, e, b, None] * time
        fa, fb = correlation[:, f, a, None] * time, correlation[:, f, b, None] * time
        apart = np.maximum(1 - size, 0.0) + size * left**2  # 1 − |t C_ab|
        determinant = np.maximum(apart * (1 + size * time), FLOOR)
        e_apart, f_apart = ea - sign * eb, fa - sign * fb
        ee = 1 - (e_apart**2 + 2 * sign * apart * ea * eb) / determinant
        ff = 1 - (f_apart**2 + 2 * sign * apart * fa * fb) / determinant
        ef = e_apart * f_apart + sign * apart * (ea * fb + eb * fa)
        ef = correlation[:, e, f, None] * time - ef / determinant
        density = 1 / (2 * np.pi * np.sqrt(determinant))
        total += (density * _quadrant(ee, ff, ef)) @ measure * correlation[:, a, b]
    return total


def _quadrant(first: ndarray, second: ndarray, cross: ndarray) -> ndarray:
    """O2 = P(x > 0, y > 0) from two variances and their covariance."""
    norm = np.sqrt(np.maximum(first, FLOOR) * np.maximum(second, FLOOR))
    result: ndarray = 0.25 + np.arcsin(np.clip(cross / norm, -1.0, 1.0)) / (2 * np.pi)
    return result


def _octant(covariance: ndarray, a: ndarray, b: ndarray, c: ndarray) -> ndarray:
    """O3 = P(x_a > 0, x_b > 0, x_c > 0)."""
    total = np.zeros(len(a))
    for x, y in ((a, b), (a, c), (b, c)):
        total += _quadrant(covariance[x, x], covariance[y, y], covariance[x, y]) - 0.25
    return 0.125 + 0.5 * total


def _given(covariance: ndarray, x: ndarray, y: ndarray, z: ndarray) -> ndarray:
    """cov(x, y | z = 0)."""
    own = np.maximum(covariance[z, z], FLOOR)
    result: ndarray = covariance[x, y] - covariance[x, z] * covariance[y, z] / own
    return result


def _at_zero(variance: ndarray) -> ndarray:
    """Density of a centred Gaussian at 0."""
    result: ndarray = 1 / np.sqrt(2 * np.pi * np.maximum(variance, FLOOR))
    return result


def _edge(gate: ndarray, field: ndarray, cross: ndarray) -> ndarray:
    """E2 = ⟨Θ(b) d⁺⟩ from var b, var d and cov(b, d)."""
    gate = np.maximum(gate, FLOOR)
    result: ndarray = (np.sqrt(np.maximum(field, 0.0)) + cross / np.sqrt(gate)) / (
        2 * np.sqrt(2 * np.pi)
    )
    return result


def _edge_given(covariance: ndarray, b: ndarray, d: ndarray, z: ndarray) -> ndarray:
    """⟨Θ(x_b) x_d⁺⟩ given x_z = 0."""
    return _edge(
        _given(covariance, b, b, z), _given(covariance, d, d, z), _given(covariance, b, d, z)
    )


def _pair(covariance: ndarray, c: ndarray, d: ndarray) -> ndarray:
    """I2 = ⟨x_c⁺ x_d⁺⟩."""
    norm = np.sqrt(np.maximum(covariance[c, c] * covariance[d, d], FLOOR))
    cosine = np.clip(covariance[c, d] / norm, -1.0, 1.0)
    sine = np.sqrt((1 - cosine) * (1 + cosine))
    result: ndarray = norm * (sine + cosine * (np.pi - np.arccos(cosine))) / (2 * np.pi)
    return result


def _square(covariance: ndarray, i: ndarray, c: ndarray) -> ndarray:
    """⟨Θ(x_i) (x_c⁺)²⟩, c ≠ i."""
    half = _quadrant(covariance[c, c], covariance[i, i], covariance[c, i])
    left = np.sqrt(np.maximum(_given(covariance, c, c, i), 0.0) / (2 * np.pi))
    result: ndarray = covariance[c, c] * half + covariance[c, i] * _at_zero(covariance[i, i]) * left
    return result


def _gated_pair(covariance: ndarray, i: ndarray, c: ndarray, d: ndarray) -> ndarray:
    """⟨Θ(x_i) x_c⁺ x_d⁺⟩, all different."""
    own = covariance[c, c] * _at_zero(covariance[c, c]) * _edge_given(covariance, i, d, c)
    both = covariance[c, d] * _octant(covariance, i, c, d)
    gate = covariance[c, i] * _at_zero(covariance[i, i]) * _edge_given(covariance, c, d, i)
    result: ndarray = own + both + gate
    return result


def _two_gates(covariance: ndarray, i: ndarray, k: ndarray, c: ndarray) -> ndarray:
    """⟨Θ(x_i) Θ(x_k) (x_c⁺)²⟩, all different."""
    result: ndarray = covariance[c, c] * _octant(covariance, i, k, c)
    for gate, other in ((i, k), (k, i)):
        weight = covariance[c, gate] * _at_zero(covariance[gate, gate])
        result = result + weight * _edge_given(covariance, other, c, gate)
    return result


def _distinct(
    covariance: ndarray, i: ndarray, k: ndarray, c: ndarray, d: ndarray
) -> Float[ndarray, " n"]:
    """⟨Θ(x_i) Θ(x_k) x_c⁺ x_d⁺⟩, all different: Stein's lemma on x_c, then on x_d."""
    index = np.stack([i, k, c, d], axis=1)
    block = covariance[index[:, :, None], index[:, None, :]]
    value = covariance[c, d] * orthant_four(block)
    for a, (b, e) in ((2, (0, 1)), (0, (1, 2)), (1, (0, 2))):
        value = value + block[:, 2, a] * _at_zero(block[:, a, a]) * _tri(block, a, b, e)
    result: ndarray = value
    return result


def _tri(block: ndarray, a: int, b: int, e: int) -> Float[ndarray, " n"]:
    """⟨Θ(x_b) Θ(x_e) x_d⁺⟩ given x_a = 0, where d is the block's last field."""
    order = [b, e, 3]
    own = np.maximum(block[:, a, a], FLOOR)
    across = block[:, order, a]
    given = (
        block[:, order][:, :, order]
        - across[:, :, None] * across[:, None, :] / (own[:, None, None])
    )
    total = np.zeros(len(block))
    for j in range(3):
        x, y = (n for n in range(3) if n != j)
        self_j = np.maximum(given[:, j, j], FLOOR)
        total += (
            given[:, 2, j]
            * _at_zero(given[:, j, j])
            * _quadrant(
                given[:, x, x] - given[:, x, j] ** 2 / self_j,
                given[:, y, y] - given[:, y, j] ** 2 / self_j,
                given[:, x, y] - given[:, x, j] * given[:, y, j] / self_j,
            )
        )
    return total


@lru_cache(maxsize=32)
def _quadruples(students: int, fields: int) -> tuple[ndarray, ndarray]:
    """All (i ≤ k, c ≤ d) and how often each (c, d) counts."""
    i, k = np.triu_indices(students)
    c, d = np.triu_indices(fields)
    index = np.stack(
        [
            np.repeat(i, len(c)),
            np.repeat(k, len(c)),
            np.tile(c, len(i)),
            np.tile(d, len(i)),
        ],
        axis=1,
    )
    return index, np.where(index[:, 2] == index[:, 3], 1.0, 2.0)
