"""Gaussian averages of erf, ReLU and linear units: all that learning and error need of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import erf

from prunus.check import unknown
from prunus.theory.teacher_student.points import gaussian_fields
from prunus.theory.teacher_student.relu import relu_gated_square

__all__ = ["ACTIVATIONS", "Activation", "activation_of", "smooth_activation"]

TWO_OVER_PI = 2 / np.pi
TINY = 1e-300  # a variance below it counts as zero: a silent unit
CHUNK = 32768  # entries of a block of (pairs, P, P): what stays in the cache


@dataclass(frozen=True)
class Activation:
    """A unit's nonlinearity g and the Gaussian averages that the theory takes of it.

    With fields f ~ N(0, C), the first K of them the student's λ, and Δ = Σ_c a_c g(f_c):

    Attributes:
        name: as in `ACTIVATIONS`.
        value: g, applied entry by entry to an array.
        slope: g′, likewise.
        pair: C ↦ ⟨g(f_c) g(f_d)⟩, a P × P matrix (I2).
        slopes: (C, K) ↦ ⟨g′(f_i) g′(f_c)⟩, a K × P matrix (J2).
        curvature: (C, a, J2) ↦ ⟨g″(λ_i) Δ⟩, a vector of length K.
        gated_square: (C, a, K) ↦ ⟨g′(λ_i) g′(λ_k) Δ²⟩, a K × K matrix.
        odd: g(−u) = −g(u).
        homogeneous: g(s u) = s g(u) for s > 0.
    """

    name: str
    value: Callable[[ndarray], ndarray]
    slope: Callable[[ndarray], ndarray]
    pair: Callable[[ndarray], ndarray]
    slopes: Callable[[ndarray, int], ndarray]
    curvature: Callable[[ndarray, ndarray, ndarray], ndarray]
    gated_square: Callable[[ndarray, ndarray, int], ndarray]
    odd: bool
    homogeneous: bool

    def stein(
        self, covariance: Float[ndarray, "P P"], readout: Float[ndarray, " P"], students: int
    ) -> Float[ndarray, "K P"]:
        """The matrix Γ with ⟨g′(λ_i) Δ u⟩ = Σ_c cov(u, f_c) Γ_ic for any Gaussian u.

        Γ_ic = a_c ⟨g′(f_i) g′(f_c)⟩ + δ_ic ⟨g″(λ_i) Δ⟩, by Stein's lemma; Γ C holds every
        three-point average of the learning equations.
        """
        slopes = self.slopes(covariance, students)
        gamma: ndarray = slopes * readout
        own = np.arange(students)
        gamma[own, own] += self.curvature(covariance, readout, slopes)
        return gamma


def activation_of(activation: "str | Activation") -> Activation:
    """The activation behind a name, or the activation itself; ValueError for unknown names."""
    if isinstance(activation, Activation):
        return activation
    if activation not in ACTIVATIONS:
        raise unknown("activation", str(activation), ACTIVATIONS)
    return ACTIVATIONS[activation]


def smooth_activation(
    name: str,
    value: Callable[[ndarray], ndarray],
    slope: Callable[[ndarray], ndarray],
    bend: Callable[[ndarray], ndarray],
    *,
    points: int = 2**14,
    odd: bool = False,
) -> Activation:
    """A nonlinearity without closed forms: its averages over fixed quasi-random Gaussian points.

    The points are mirrored, have second moment exactly C, and are the same in every call, so
    that learning curves stay smooth. Errors are about 1e-2 relative at 2¹³ points and 2e-3 at
    2¹⁷; check by doubling `points`.

    Args:
        name: for messages and tables.
        value: g on arrays.
        slope: g′.
        bend: g″; g must be twice differentiable.
        points: number of points.
        odd: g(−u) = −g(u).

    Example:
        >>> import numpy as np
        >>> tanh = smooth_activation("tanh", np.tanh, lambda u: np.cosh(u) ** -2.0,
        ...     lambda u: -2 * np.tanh(u) * np.cosh(u) ** -2.0, odd=True)
        >>> tanh.odd
        True
    """

    def pair(covariance: ndarray) -> ndarray:
        output = value(gaussian_fields(covariance, points))
        result: ndarray = output.T @ output / len(output)
        return result

    def slopes(covariance: ndarray, students: int) -> ndarray:
        gates = slope(gaussian_fields(covariance, points))
        result: ndarray = gates[:, :students].T @ gates / len(gates)
        return result

    def curvature(covariance: ndarray, readout: ndarray, slopes: ndarray) -> ndarray:
        fields = gaussian_fields(covariance, points)
        result: ndarray = bend(fields[:, : len(slopes)]).T @ (value(fields) @ readout) / len(fields)
        return result

    def gated_square(covariance: ndarray, readout: ndarray, students: int) -> ndarray:
        fields = gaussian_fields(covariance, points)
        gates = slope(fields[:, :students])
        squared = (value(fields) @ readout) ** 2
        result: ndarray = (gates * squared[:, None]).T @ gates / len(fields)
        return result

    return Activation(
        name=name,
        value=value,
        slope=slope,
        pair=pair,
        slopes=slopes,
        curvature=curvature,
        gated_square=gated_square,
        odd=odd,
        homogeneous=False,
    )


# erf(u/√2). Its slope √(2/π) exp(−u²/2) only tilts the Gaussian (Saad & Solla 1995).


def _erf_pair(covariance: Float[ndarray, "P P"]) -> Float[ndarray, "P P"]:
    scale = 1 / np.sqrt(1 + covariance.diagonal())
    angle = covariance * np.multiply.outer(scale, scale)
    result: ndarray = TWO_OVER_PI * np.arcsin(np.clip(angle, -1.0, 1.0))
    return result


def _erf_slopes(covariance: Float[ndarray, "P P"], students: int) -> Float[ndarray, "K P"]:
    widened = 1 + covariance.diagonal()
    determinant = np.multiply.outer(widened[:students], widened) - covariance[:students] ** 2
    result: ndarray = TWO_OVER_PI / np.sqrt(determinant)
    return result


def _erf_curvature(
    covariance: Float[ndarray, "P P"],
    readout: Float[ndarray, " P"],
    slopes: Float[ndarray, "K P"],
) -> Float[ndarray, " K"]:
    students = len(slopes)
    widened = 1 + covariance.diagonal()[:students]
    result: ndarray = -((slopes * covariance[:students]) @ readout) / widened
    return result


def _erf_gated_square(
    covariance: Float[ndarray, "P P"], readout: Float[ndarray, " P"], students: int
) -> Float[ndarray, "K K"]:
    """Σ_cd a_c a_d I4(i, k, c, d): for each pair i ≤ k tilt C by both slopes, then take I2.

    Pairs go in chunks that stay in the cache; K² P²/2 arc sines in all.
    """
    widened = 1 + covariance.diagonal()
    first, second = np.triu_indices(students)
    values = np.empty(len(first))
    size = max(1, CHUNK // len(readout) ** 2)
    for start in range(0, len(first), size):
        i, k = first[start : start + size], second[start : start + size]
        shared = covariance[i, k]
        rest = widened[k] - shared**2 / widened[i]
        along = covariance[i] / np.sqrt(widened[i])[:, None]
        across = covariance[k] - (shared / widened[i])[:, None] * covariance[i]
        across /= np.sqrt(rest)[:, None]
        scale = 1 / np.sqrt(widened - along**2 - across**2)
        along *= scale
        across *= scale
        angle = covariance * scale[:, :, None]
        angle *= scale[:, None, :]
        angle -= along[:, :, None] * along[:, None, :]
        angle -= across[:, :, None] * across[:, None, :]
        np.clip(angle, -1.0, 1.0, out=angle)
        np.arcsin(angle, out=angle)
        quadratic = (angle @ readout) @ readout
        values[start : start + size] = quadratic / np.sqrt(widened[i] * rest)
    result = np.empty((students, students))
    result[first, second] = TWO_OVER_PI**2 * values
    result[second, first] = result[first, second]
    return result


# ReLU: arc-cosine kernels (Cho & Saul 2009); its four-point average is in relu.py.


def _spread(covariance: Float[ndarray, "P P"]) -> Float[ndarray, " P"]:
    result: ndarray = np.sqrt(np.maximum(covariance.diagonal(), TINY))
    return result


def _relu_pair(covariance: Float[ndarray, "P P"]) -> Float[ndarray, "P P"]:
    spread = _spread(covariance)
    norm = np.multiply.outer(spread, spread)
    cosine = np.clip(covariance / norm, -1.0, 1.0)
    sine = np.sqrt((1 - cosine) * (1 + cosine))
    result: ndarray = norm * (sine + cosine * (np.pi - np.arccos(cosine))) / (2 * np.pi)
    return result


def _relu_slopes(covariance: Float[ndarray, "P P"], students: int) -> Float[ndarray, "K P"]:
    spread = _spread(covariance)
    cosine = covariance[:students] / np.multiply.outer(spread[:students], spread)
    result: ndarray = 0.25 + np.arcsin(np.clip(cosine, -1.0, 1.0)) / (2 * np.pi)
    result[np.arange(students), np.arange(students)] = 0.5
    return result


def _relu_curvature(
    covariance: Float[ndarray, "P P"],
    readout: Float[ndarray, " P"],
    slopes: Float[ndarray, "K P"],
) -> Float[ndarray, " K"]:
    students = len(slopes)
    own = _spread(covariance)[:students]
    left = covariance.diagonal() - (covariance[:students] / own[:, None]) ** 2
    result: ndarray = (np.sqrt(np.maximum(left, 0.0)) @ readout) / (2 * np.pi * own)
    return result


def _step(values: ndarray) -> ndarray:
    return np.where(values > 0, 1.0, 0.0)


# The identity.


def _linear_gated_square(
    covariance: Float[ndarray, "P P"], readout: Float[ndarray, " P"], students: int
) -> Float[ndarray, "K K"]:
    return np.full((students, students), readout @ covariance @ readout)


ACTIVATIONS: dict[str, Activation] = {
    "erf": Activation(
        name="erf",
        value=lambda u: erf(u * np.sqrt(0.5)),
        slope=lambda u: np.sqrt(TWO_OVER_PI) * np.exp(-0.5 * u * u),
        pair=_erf_pair,
        slopes=_erf_slopes,
        curvature=_erf_curvature,
        gated_square=_erf_gated_square,
        odd=True,
        homogeneous=False,
    ),
    "relu": Activation(
        name="relu",
        value=lambda u: np.maximum(u, 0.0),
        slope=_step,
        pair=_relu_pair,
        slopes=_relu_slopes,
        curvature=_relu_curvature,
        gated_square=relu_gated_square,
        odd=False,
        homogeneous=True,
    ),
    "linear": Activation(
        name="linear",
        value=lambda u: u,
        slope=np.ones_like,
        pair=lambda covariance: covariance.copy(),
        slopes=lambda covariance, students: np.ones((students, len(covariance))),
        curvature=lambda covariance, readout, slopes: np.zeros(len(slopes)),
        gated_square=_linear_gated_square,
        odd=True,
        homogeneous=True,
    ),
}
