"""Edge pruning: how random, magnitude and DPP masks rescale the order parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import brentq
from scipy.special import erfcx, gammaln, ndtr, ndtri, owens_t
from torch import Tensor

from prunus.check import fraction, unknown
from prunus.counting import count_of

__all__ = ["EDGE_RULES", "EdgeMoments", "edge_moments", "keep_probabilities", "moments_of_rule"]

EDGE_RULES = ("random", "magnitude", "dpp")
SERIES = 30.0  # argument from which 1 − x Mi(x) is taken from its asymptotic series
WIDE = 8.0  # scale s from which h is summed as a Hermite series: the integral form cancels
HERMITE = 64  # terms of that series, which is even shorter than needed from s = 8 on

Rule = Callable[[ndarray], ndarray]  # keep probability of a weight in units of its deviation


@dataclass(frozen=True, eq=False)
class EdgeMoments:
    """What an edge rule does to Gaussian weights X, Y of unit variance and correlation ρ.

    Attributes:
        density: E π(X), the kept fraction.
        own: m = E[π(X) X²], the share of a node's squared norm that is kept.
        across: ρ ↦ h(ρ) = E[π(X) π(Y) X Y], for independent masks of different nodes.
        scale: threshold z (magnitude) or scale s (DPP) in units of the weights' deviation.
    """

    density: float
    own: float
    across: Callable[[ndarray], ndarray]
    scale: float | None = None


def edge_moments(rule: str, density: float, *, shared_mask: bool = False) -> EdgeMoments:
    """The two moments m and h(ρ) through which an edge rule acts on the order parameters.

    random:    π = p;                 m = p,            h = p² ρ (p ρ with one mask for all nodes).
    magnitude: π = 1[|X| > z];        m = p + 2 z φ(z), h by Owen's T function.
    dpp:       π = X²/(s² + X²);      m = 1 − s² p,     h by a one-dimensional integral.

    Args:
        rule: "random", "magnitude" or "dpp" (k-DPP with kernel diag(w) diag(w), whose inclusion
            probabilities for many inputs are those above).
        density: p, the kept fraction of each node's weights, in (0, 1].
        shared_mask: all nodes keep the same coordinates (random only).

    References:
        Rosenbaum (1961) and Owen (1956) for the magnitude rule; Chen, Dempster & Liu (1994) for
        conditional Poisson sampling; both derived in docs/teacher_student.md.
    """
    if rule not in EDGE_RULES:
        raise unknown("edge rule", rule, EDGE_RULES)
    if shared_mask and rule != "random":
        raise ValueError(
            f"`shared_mask` fits the random rule only, got {rule!r}: the masks of the others "
            f"follow each node's own weights."
        )
    p = fraction("density", density, one=True)
    if p == 1:
        return EdgeMoments(1.0, 1.0, lambda rho: rho, 0.0)
    if rule == "random":
        factor = p if shared_mask else p * p
        return EdgeMoments(p, p, lambda rho: factor * rho)
    return _magnitude(p) if rule == "magnitude" else _dpp(p)


def moments_of_rule(rule: Rule, *, nodes: int = 80) -> EdgeMoments:
    """The same moments for any smooth rule π, by Gauss–Hermite quadrature in one and two axes.

    Args:
        rule: keep probability in [0, 1] of weights in units of their standard deviation.
        nodes: quadrature nodes per axis; rules with jumps need other means.

    Raises:
        ValueError: π leaves [0, 1] at a node, or keeps nothing.
    """
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    probability = np.asarray(rule(x), dtype=float)
    if probability.shape != x.shape or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(
            "A rule must give a keep probability in [0, 1] for each weight of an array, got "
            f"shape {probability.shape}, values from {probability.min():.3g} to "
            f"{probability.max():.3g}."
        )
    density = float(weight @ probability)
    if density <= 0:
        raise ValueError("A rule must keep some weights, got a density of 0.")

    def across(rho: ndarray) -> ndarray:
        distinct, back = np.unique(np.abs(rho), return_inverse=True)
        values = np.empty(len(distinct))
        for n, r in enumerate(distinct):
            other = r * x[:, None] + np.sqrt(max(0.0, 1 - r * r)) * x
            inner = (rule(other) * other) @ weight
            values[n] = (weight * probability * x) @ inner
        result: ndarray = np.sign(rho) * values[back].reshape(rho.shape)
        return result

    return EdgeMoments(density, float(weight @ (probability * x * x)), across)


def keep_probabilities(
    weights: Float[Tensor, "K N"], rule: str, density: float
) -> Float[Tensor, "K N"]:
    """The probability with which each given weight is kept, node by node.

    random: p. magnitude: 1 for the floor(pN + 1/2) largest |w| of each node, ties to the lower
    index. dpp: w²/(c + w²) with c per node such that the mean is p.
    """
    if rule not in EDGE_RULES:
        raise unknown("edge rule", rule, EDGE_RULES)
    p = fraction("density", density, one=True)
    if p == 1 or rule == "random":
        return torch.full_like(weights, p)
    if rule == "magnitude":
        kept = count_of(p, weights.shape[1])
        order = weights.abs().argsort(dim=1, descending=True, stable=True)
        return torch.zeros_like(weights).scatter_(1, order[:, :kept], 1.0)
    square = weights.square()
    if bool((square.count_nonzero(dim=1) <= p * weights.shape[1]).any()):
        raise ValueError(
            f"The DPP rule cannot keep a share {p:g} of the weights of a node with no more than "
            f"that share different from zero. Lower `density`."
        )
    low = square.clamp(min=1e-300).log().amin(dim=1) - 50
    high = square.log().amax(dim=1) + 50
    for _ in range(200):  # bisection in log c: the mean falls with c
        middle = 0.5 * (low + high)
        above = (square / (middle.exp()[:, None] + square)).mean(dim=1) > p
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return square / ((0.5 * (low + high)).exp()[:, None] + square)


def _magnitude(p: float) -> EdgeMoments:
    z = -float(ndtri(p / 2))
    own = p + 2 * z * _density(z)

    def half(rho: ndarray) -> ndarray:
        b = np.sqrt((1 - rho) / (1 + rho))
        value = rho * (ndtr(-z) - 2 * owens_t(z, b)) + 2 * rho * z * _density(z) * ndtr(-z * b)
        tail = np.sqrt((1 - rho) * (1 + rho)) / (2 * np.pi) * np.exp(-(z**2) / (1 + rho))
        result: ndarray = value + tail
        return result

    def across(rho: ndarray) -> ndarray:
        inside = np.where(np.abs(rho) < 1, rho, 0.0)
        result: ndarray = np.where(
            np.abs(rho) < 1, 2 * (half(inside) - half(-inside)), np.sign(rho) * own
        )
        return result

    return EdgeMoments(p, own, across, z)


def _dpp(p: float) -> EdgeMoments:
    """E π = 1 − s Mi(s) = p for π = X²/(s² + X²), Mi the Mills ratio."""
    s = float(np.exp(brentq(lambda u: float(_rest(np.exp(u))) - p, -40.0, 40.0, xtol=1e-15)))
    if s > WIDE:
        return _dpp_wide(p, s)
    angle, weight = np.polynomial.legendre.leggauss(32)
    angle = (angle + 1) * np.pi / 8
    weight = weight * np.pi / 8  # ∫₀^{π/2} is twice ∫₀^{π/4}
    sine = np.sin(2 * angle)

    def part(rho: ndarray) -> ndarray:
        # B(x)/a with x² = s²(1 + sin 2θ)/a is x² B(x)/(s²(1 + sin 2θ)): nothing vanishes below.
        shrink = np.maximum(1 - rho[..., None] * sine, 1e-300)
        x = s * np.sqrt((1 + sine) / shrink)
        result: ndarray = (_scaled_rest(x) / (s * s * (1 + sine))) @ weight
        return result

    def across(rho: ndarray) -> ndarray:
        result: ndarray = rho * (1 - 2 * s * s * p) + s**4 * (part(rho) - part(-rho))
        return result

    return EdgeMoments(p, 1 - s * s * p, across, s)


def _dpp_wide(p: float, s: float) -> EdgeMoments:
    """The DPP rule at low density: h(ρ) = Σ c_n² ρⁿ with c_n = E[π(X) X He_n(X)]/√n!."""
    x, weight = np.polynomial.hermite_e.hermegauss(HERMITE)
    weight = weight / weight.sum()
    kept = x * x / (s * s + x * x)
    coefficients = np.zeros(HERMITE // 2)
    for n in range(1, HERMITE // 2, 2):
        unit = np.zeros(n + 1)
        unit[n] = 1.0
        polynomial = np.polynomial.hermite_e.hermeval(x, unit) * np.exp(-0.5 * gammaln(n + 1))
        coefficients[n] = (weight * kept * x) @ polynomial
    series = np.polynomial.Polynomial(coefficients**2)
    return EdgeMoments(p, float(weight @ (kept * x * x)), lambda rho: series(rho), s)


def _density(z: float) -> float:
    return float(np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))


def _rest(x: ndarray | float) -> ndarray:
    """B(x) = 1 − x Mi(x)."""
    x = np.asarray(x, dtype=float)
    result: ndarray = np.asarray(_scaled_rest(x) / (x * x))
    return result


def _scaled_rest(x: ndarray) -> ndarray:
    """x² B(x), which goes to 1 for large x; there by the asymptotic series."""
    near = np.minimum(x, SERIES)
    exact = near * near * (1 - near * np.sqrt(np.pi / 2) * erfcx(near / np.sqrt(2)))
    y = 1 / np.maximum(x, SERIES) ** 2
    series = 1 + y * (-3 + y * (15 + y * (-105 + y * 945)))
    result: ndarray = np.where(x > SERIES, series, exact)
    return result
