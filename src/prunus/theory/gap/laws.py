"""Laws of the weights and of their pruned parts, as sequences of even moments in log scale."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prunus.check import fraction, positive, unknown
from prunus.later import Later

__all__ = [
    "METHODS",
    "PRESETS",
    "Law",
    "below",
    "dense_moments",
    "energy_below",
    "kept_moments",
    "moments_law",
    "normal",
    "pruned_moments",
    "quantile",
    "sum_of_copies",
    "truncated_normal",
    "uniform",
]

special = Later("scipy.special")

Array = NDArray[np.float64]
Method = Literal["random", "random_rescaled", "magnitude"]
METHODS: tuple[Method, ...] = ("random", "random_rescaled", "magnitude")
HIGHEST = 64  # even moments 2, 4, …, 128
HALF_ORDERS = np.arange(1, HIGHEST + 1, dtype=np.float64)
DOUBLE_FACTORIALS = np.cumsum(np.log(2 * HALF_ORDERS - 1))  # ln (2k − 1)!!


@dataclass(frozen=True, kw_only=True)
class Law:
    """Law of one weight, independent and alike within a layer.

    Attributes:
        kind: "uniform" on [−bound, bound], "normal", "truncated_normal" (a centred normal of
            standard deviation `parent`, conditioned on |w| ≤ bound), or "moments" (variance,
            bound and perhaps a fourth moment are all that is known).
        variance: E w².
        bound: largest |w|, ∞ where there is none.
        parent: standard deviation before truncation; the law's own for "normal".
        fourth: E w⁴ where given ("moments" only).
        symmetric: w and −w have the same law.
    """

    kind: Literal["uniform", "normal", "truncated_normal", "moments"]
    variance: float
    bound: float = math.inf
    parent: float | None = None
    fourth: float | None = None
    symmetric: bool = True

    @property
    def gaussian_lipschitz(self) -> float | None:
        """c such that w is a c-Lipschitz image of a standard normal; None where unknown."""
        if self.kind == "uniform":
            return self.bound * math.sqrt(2 / math.pi)
        return self.parent


def uniform(bound: float) -> Law:
    """Uniform on [−bound, bound]."""
    k = positive("bound", bound)
    return Law(kind="uniform", variance=k * k / 3, bound=k)


def normal(std: float) -> Law:
    """Centred normal of standard deviation `std`."""
    s = positive("std", std)
    return Law(kind="normal", variance=s * s, parent=s)


def truncated_normal(std: float, cut: float) -> Law:
    """A centred normal of standard deviation `std` conditioned on |w| ≤ cut (in weight units)."""
    s, c = positive("std", std), positive("cut", cut)
    inside = math.log(math.erf(c / s / math.sqrt(2)))
    variance = math.exp(float(_normal_part(s, c)[0]) - inside)
    return Law(kind="truncated_normal", variance=variance, bound=c, parent=s)


def moments_law(
    variance: float, bound: float = math.inf, fourth: float | None = None, *, symmetric: bool = True
) -> Law:
    """A law of which only the variance, the largest |w| and perhaps E w⁴ are known.

    Raises:
        ValueError: no distribution has these moments, or neither bound nor fourth is given.
    """
    v = positive("variance", variance)
    r = float(bound)
    if math.isnan(r) or r <= 0 or v > r * r * (1 + 1e-12):
        raise ValueError(
            f"no such distribution: variance {v!r} with |w| ≤ {bound!r}. A variance is at most "
            f"the squared bound."
        )
    if fourth is not None:
        mu4 = positive("fourth", fourth)
        if mu4 < v * v * (1 - 1e-12) or mu4 > r * r * v * (1 + 1e-12):
            raise ValueError(
                f"no such distribution: fourth moment {mu4!r} with variance {v!r} and |w| ≤ "
                f"{bound!r}. It lies between variance² and bound² · variance."
            )
    elif math.isinf(r):
        raise ValueError("`moments_law` needs a finite `bound` or a `fourth` moment, got neither.")
    return Law(kind="moments", variance=v, bound=r, fourth=fourth, symmetric=symmetric)


PRESETS: dict[str, Callable[[int, int], Law]] = {
    # name -> law of a layer with fan_out outputs and fan_in inputs
    "he_uniform": lambda fan_out, fan_in: uniform(math.sqrt(6 / fan_in)),
    "he_normal": lambda fan_out, fan_in: normal(math.sqrt(2 / fan_in)),
    "lecun_uniform": lambda fan_out, fan_in: uniform(math.sqrt(3 / fan_in)),
    "lecun_normal": lambda fan_out, fan_in: normal(math.sqrt(1 / fan_in)),
    "xavier_uniform": lambda fan_out, fan_in: uniform(math.sqrt(6 / (fan_in + fan_out))),
    "xavier_normal": lambda fan_out, fan_in: normal(math.sqrt(2 / (fan_in + fan_out))),
    "torch_linear": lambda fan_out, fan_in: uniform(1 / math.sqrt(fan_in)),
    "qk_uniform": lambda fan_out, fan_in: uniform(1 / math.sqrt(max(fan_in, fan_out))),
}


def _log_lower_gamma(shape: Array, x: float) -> Array:
    """ln of the regularised lower incomplete gamma function, without underflow."""
    if x == 0:
        return np.full_like(shape, -np.inf)
    with np.errstate(divide="ignore"):
        logs = np.log(special.gammainc(shape, x))
    small = x < shape + 1
    # x^a e^{−x} / Γ(a + 1) · Σ xⁿ / ((a + 1) … (a + n)); the terms fall at least like x/(a+n)
    terms = np.cumprod(x / (shape[:, None] + np.arange(1, 400)), axis=1)
    series = shape * math.log(x) - x - special.gammaln(shape + 1) + np.log1p(terms.sum(axis=1))
    result: Array = np.where(small, series, logs)
    return result


def _normal_part(std: float, cut: float) -> Array:
    """ln E[w^{2k}; |w| ≤ cut] of a centred normal."""
    full = 2 * HALF_ORDERS * math.log(std) + DOUBLE_FACTORIALS
    part: Array = full + _log_lower_gamma(HALF_ORDERS + 0.5, cut * cut / (2 * std * std))
    return part


def dense_moments(law: Law) -> Array:
    """ln E w^{2k} for k = 1..64, rounded up where it is known by bounds only."""
    if law.kind == "uniform":
        uniform_logs: Array = 2 * HALF_ORDERS * math.log(law.bound) - np.log(2 * HALF_ORDERS + 1)
        return uniform_logs
    if law.kind == "normal":
        return np.asarray(math.log(law.variance) * HALF_ORDERS + DOUBLE_FACTORIALS)
    if law.kind == "truncated_normal":
        assert law.parent is not None
        part = _normal_part(law.parent, law.bound) + 1e-9
        return np.asarray(part - math.log(math.erf(law.bound / law.parent / math.sqrt(2))))
    if math.isinf(law.bound):
        raise ValueError("a law without a bound has no moments of all orders: use `heavy_tail`.")
    logs = math.log(law.variance) + 2 * (HALF_ORDERS - 1) * math.log(law.bound)
    if law.fourth is not None:
        later = math.log(law.fourth) + 2 * (HALF_ORDERS[1:] - 2) * math.log(law.bound)
        logs[1:] = np.minimum(logs[1:], later)
    return logs


def quantile(law: Law, level: float) -> float:
    """G⁻¹(level) for G(t) = P(|w| ≤ t)."""
    if law.kind == "uniform":
        return law.bound * level
    if law.kind == "moments":
        raise ValueError(
            "magnitude pruning needs the whole law of |w|, got moments only. Give a uniform, "
            "normal or truncated normal law."
        )
    assert law.parent is not None
    inside = 1.0
    if law.kind == "truncated_normal":
        inside = math.erf(law.bound / law.parent / math.sqrt(2))
    # 1 − erf through the complement keeps the digits near level = 1
    root = special.erfcinv(1 - level * inside) if level > 0.5 else special.erfinv(level * inside)
    return min(law.parent * math.sqrt(2) * float(root), law.bound)


def below(law: Law, threshold: float) -> Array:
    """ln E[w^{2k}; |w| ≤ threshold] for k = 1..64."""
    t = min(threshold, law.bound)
    if t <= 0:
        return np.full(HIGHEST, -np.inf)
    if law.kind == "uniform":
        return math.log(t / law.bound) + 2 * HALF_ORDERS * math.log(t) - np.log(2 * HALF_ORDERS + 1)
    if law.kind == "moments":
        raise ValueError("magnitude pruning needs the whole law of |w|, got moments only.")
    assert law.parent is not None
    part = _normal_part(law.parent, t) + 1e-9
    if law.kind == "truncated_normal":
        part = part - math.log(math.erf(law.bound / law.parent / math.sqrt(2)))
    return part


def pruned_moments(law: Law, method: Method, density: float) -> Array:
    """ln E D^{2k} of one entry of D = W − V for a random mask of this density."""
    logs, p = _symmetric_moments(law), _density(method, density)
    if p == 1:
        return np.full(HIGHEST, -np.inf)
    if method == "random":
        return logs + math.log1p(-p)
    ratio = math.log1p(-p) - math.log(p)
    return logs + np.logaddexp(math.log(p) + 2 * HALF_ORDERS * ratio, math.log1p(-p))


def kept_moments(law: Law, method: Method, density: float) -> Array:
    """ln E V^{2k} of one entry of the pruned matrix V for a random mask of this density."""
    logs, p = _symmetric_moments(law), _density(method, density)
    if p == 0:
        return np.full(HIGHEST, -np.inf)
    if method == "random":
        return logs + math.log(p)
    return logs + math.log(p) - 2 * HALF_ORDERS * math.log(p)


def _symmetric_moments(law: Law) -> Array:
    """Even moments of the law, or of the symmetric w − w′ that dominates it in convex order."""
    if law.symmetric:
        return dense_moments(law)
    doubled = moments_law(2 * law.variance, 2 * law.bound)
    return dense_moments(doubled)


def _density(method: Method, density: float) -> float:
    if method not in ("random", "random_rescaled"):
        raise unknown("random method", method, ("random", "random_rescaled"))
    return fraction("density", density, zero=method == "random", one=True)


def sum_of_copies(logs: Array, copies: int) -> Array:
    """ln E (X₁ + … + X_K)^{2k} for iid symmetric X with even log moments `logs`.

    Even-moment convolution μ_{2k}(X + Y) = Σ_j C(2k, 2j) μ_{2j}(X) μ_{2k−2j}(Y), by doubling;
    all terms are positive.
    """
    k = np.arange(HIGHEST + 1)
    choose = (
        special.gammaln(2 * k[:, None] + 1)
        - special.gammaln(2 * k[None, :] + 1)
        - special.gammaln(np.maximum(2 * (k[:, None] - k[None, :]), 0) + 1)
    )
    lower = k[None, :] <= k[:, None]

    def convolve(left: Array, right: Array) -> Array:
        gap = np.where(lower, k[:, None] - k[None, :], 0)
        terms = np.where(lower, choose + left[None, :] + right[gap], -np.inf)
        with np.errstate(divide="ignore"):
            peak = terms.max(axis=1, keepdims=True)
            peak = np.where(np.isfinite(peak), peak, 0)
            total: Array = peak[:, 0] + np.log(np.exp(terms - peak).sum(axis=1))
        return total

    power = np.concatenate([[0.0], logs])
    total = np.concatenate([[0.0], np.full(HIGHEST, -np.inf)])
    remaining = copies
    while remaining:
        if remaining % 2:
            total = convolve(total, power)
        remaining //= 2
        if remaining:
            power = convolve(power, power)
    return total[1:]


def energy_below(law: Law, total: int, count: int) -> float:
    """Expected share of Σ w² that the `count` smallest |w| of `total` iid weights carry.

    E f(T) / E w² with T ~ Beta(k, N − k) and f(u) = E[w²; |w| ≤ G⁻¹(u)]; for the uniform law
    k(k+1)(k+2) / (N(N+1)(N+2)).
    """
    if count <= 0:
        return 0.0
    if count >= total:
        return 1.0
    if law.kind == "uniform":
        return count * (count + 1) * (count + 2) / (total * (total + 1.0) * (total + 2.0))
    rest = total - count
    mean, spread = count / total, math.sqrt(count * rest / total / total / (total + 1))
    levels = np.linspace(max(mean - 12 * spread, 0), min(mean + 12 * spread, 1), 4001)
    if count < 60 or rest < 60:  # a skewed density: follow its own quantiles to the far tails
        low, high = special.betaincinv(count, rest, 1e-16), special.betaincinv(rest, count, 1e-16)
        levels = np.linspace(low, 1 - high, 4001)
    inner = levels[1:-1]
    log_density = (
        (count - 1) * np.log(inner) + (rest - 1) * np.log1p(-inner) - special.betaln(count, rest)
    )
    cuts = np.array([quantile(law, u) for u in inner])
    assert law.parent is not None
    values = law.parent**2 * special.gammainc(1.5, cuts**2 / (2 * law.parent**2))
    if law.kind == "truncated_normal":
        values = values / math.erf(law.bound / law.parent / math.sqrt(2))
    weights = np.exp(log_density) * np.where(np.arange(1, 4000) % 2, 4, 2)
    return float((weights * values).sum() / weights.sum() / law.variance)
