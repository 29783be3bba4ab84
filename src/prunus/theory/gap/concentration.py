"""The norm engine: thresholds that the spectral norm of a random matrix rarely exceeds."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.check import fraction, positive, whole
from prunus.later import Later
from prunus.theory.gap.laws import (
    DOUBLE_FACTORIALS,
    HALF_ORDERS,
)
from prunus.theory.gap.walks import ORDERS, falling_log, log_walk_table

__all__ = [
    "NormBound",
    "chernoff_norm",
    "concentrated_norm",
    "davidson_szarek",
    "expected_norm",
    "heavy_tail",
    "iid_norm",
    "iid_norm_curve",
    "latala",
    "matrix_bernstein",
    "moment_class",
    "profile_norm",
]

special = Later("scipy.special")

Array = NDArray[np.float64]
P = np.array(ORDERS, dtype=np.float64)
LARGE = 4096  # beyond this side the Chernoff form can beat the moments of order ≤ 128


@dataclass(frozen=True, kw_only=True)
class NormBound:
    """A threshold t with P(‖D‖ ≥ t) ≤ delta.

    Attributes:
        value: the threshold t.
        route: which theorem gave the smallest value.
        delta: the failure probability.
    """

    value: float
    route: str
    delta: float


FROBENIUS = "Frobenius and Markov"  # the route of a heavy tail where δ is too small for moments


def moment_class(log_moments: Array) -> tuple[Array, Array]:
    """Scale A_p (as ln A_p) and presence ρ_p (as ln ρ_p) of the class C(A, ρ, p), per order.

    A_p² = max(μ₂, max_{2≤k≤p} (μ_{2k} / ((2k−1)!! μ₂))^{1/(k−1)}), ρ_p = μ₂ / A_p²: the entry
    acts like a Gaussian of scale A that is present with probability ρ.
    """
    second = log_moments[..., :1]
    with np.errstate(invalid="ignore"):
        excess = (log_moments - DOUBLE_FACTORIALS - second)[..., 1:] / (HALF_ORDERS[1:] - 1)
    excess = np.where(np.isfinite(excess), excess, -np.inf)
    squared = np.maximum.accumulate(np.concatenate([second, excess], axis=-1), axis=-1)
    at = np.array(ORDERS) - 1
    scale = squared[..., at] / 2
    with np.errstate(invalid="ignore"):
        presence = second - 2 * scale
    return scale, np.where(np.isfinite(second), presence, -np.inf)


@functools.lru_cache(maxsize=256)
def _walks_by_edges(rows: int, columns: int) -> Array:
    """ln Σ_{a+b−1=s} W_p(a, b) n^(a) m^(b) at [order, s − 1]: the part free of ρ and δ."""
    left, right = falling_log(rows), falling_log(columns)
    table = np.full((len(ORDERS), max(ORDERS)), -np.inf)
    for i, p in enumerate(ORDERS):
        terms = log_walk_table()[p] + left[:p, None] + right[None, :p]
        edges = np.add.outer(np.arange(p), np.arange(p))  # a + b − 2
        keep = np.isfinite(terms)
        peak = np.full(2 * p, -np.inf)
        np.maximum.at(peak, edges[keep], terms[keep])
        total = np.bincount(edges[keep], np.exp(terms[keep] - peak[edges[keep]]), 2 * p)
        with np.errstate(divide="ignore", invalid="ignore"):
            table[i, :p] = (peak + np.log(total))[:p]
    table[np.isnan(table)] = -np.inf
    return table


def _log_trace_moments(rows: int, columns: int, log_moments: Array) -> Array:
    """ln of the bound on E Tr (D Dᵀ)^p for every order, over leading axes of `log_moments`."""
    scale, presence = moment_class(log_moments)
    walks = _walks_by_edges(rows, columns)
    edges = np.arange(1, max(ORDERS) + 1)
    with np.errstate(invalid="ignore"):
        terms = walks + presence[..., None] * edges
    terms = np.where(np.isnan(terms), -np.inf, terms)
    peak = terms.max(axis=-1)
    safe = np.where(np.isfinite(peak), peak, 0)
    with np.errstate(divide="ignore"):
        sums = safe + np.log(np.exp(terms - safe[..., None]).sum(axis=-1))
    logs = np.where(np.isfinite(peak), 2 * P * np.where(np.isfinite(scale), scale, 0), 0)
    return np.asarray(logs + sums)


def iid_norm_curve(
    rows: int, columns: int, log_moments: Any, delta: float, *, union: float = 1
) -> Array:
    """Thresholds for many laws at once: `log_moments` has 64 log moments on its last axis.

    t = min_p (union · M_{2p} / δ)^{1/2p}, M_{2p} the moment comparison bound on E Tr (D Dᵀ)^p.
    """
    logs = np.asarray(log_moments, dtype=np.float64)
    moments = _log_trace_moments(rows, columns, logs)
    roots = (moments + math.log(union) - math.log(delta)) / (2 * P)
    values: Array = np.asarray(np.exp(roots.min(axis=-1)))  # a scalar of NumPy is no array
    return values


def iid_norm(
    rows: int, columns: int, log_moments: Any, delta: float, *, union: float = 1
) -> NormBound:
    """Threshold for a matrix of iid symmetric entries with given even log moments.

    Markov's inequality on Tr (D Dᵀ)^p, whose expectation is compared with that of sparse Gaussian
    matrices by counting closed walks exactly. Also holds for masks of an exact size drawn
    uniformly (negative association).

    Args:
        rows: number of rows.
        columns: number of columns.
        log_moments: ln E D^{2k}, k = 1..64.
        delta: failure probability.
        union: number of matrices of which none may exceed the threshold.

    References:
        Bandeira & van Handel (2016), Annals of Probability 44; exact weights in docs/gap.md.
    """
    n, m = whole("rows", rows, low=1), whole("columns", columns, low=1)
    fraction("delta", delta)
    value = float(iid_norm_curve(n, m, log_moments, delta, union=union))
    return NormBound(value=value, route="walk moments", delta=delta)


def expected_norm(rows: int, columns: int, log_moments: Any) -> float:
    """A bound on E‖D‖: min_p M_{2p}^{1/2p}."""
    moments = _log_trace_moments(rows, columns, np.asarray(log_moments, dtype=np.float64))
    return float(np.exp((moments / (2 * P)).min()))


def profile_norm(
    rows: int,
    columns: int,
    scale: float,
    row_presence: float,
    column_presence: float,
    delta: float,
    *,
    union: float = 1,
) -> float:
    """Threshold for independent symmetric entries of unequal laws in the class C(A, ρ_ij).

    ρ₁ = max_i Σ_j ρ_ij, ρ₂ = max_j Σ_i ρ_ij; E Tr (D Dᵀ)^p ≤ A^{2p} min(n/ρ₂, m/ρ₁) Σ W ρ₂^a ρ₁^b.
    """
    if scale == 0 or row_presence == 0 or column_presence == 0:
        return 0.0
    log_row, log_column = math.log(row_presence), math.log(column_presence)
    front = min(math.log(rows) - log_column, math.log(columns) - log_row)
    best = math.inf
    for p in ORDERS:
        powers = np.arange(1, p + 1)
        terms = log_walk_table()[p] + log_column * powers[:, None] + log_row * powers[None, :]
        log_trace = front + _log_sum(terms)
        best = min(best, (log_trace + math.log(union) - math.log(delta)) / (2 * p))
    return scale * math.exp(best)


def _log_sum(terms: Array) -> float:
    """ln Σ e^t, to the last bit as scipy has it, which takes six times as long on small tables."""
    top = float(terms.max())
    most = terms == top
    count = int(most.sum())
    rest = float(np.exp(np.where(most, -np.inf, terms) - top).sum())
    return math.log1p(rest / count) + math.log(count) + top


def _log_root_moment(log_rate: Array, size: int, chance: float, plus: int) -> Array:
    """ln E exp(λ √(X + plus)) for X ~ Bin(size, chance), the cut-off tails bounded upwards."""
    from scipy import stats  # half a second that most calls do not need

    if chance >= 1 or size == 0:
        exact: Array = log_rate * math.sqrt(size + plus)
        return exact
    mean, spread = size * chance, math.sqrt(size * chance * (1 - chance))
    reach = 14 * spread + 40 * math.sqrt(mean + 1) + 60  # the tilt e^{λ√X} moves the mass up
    low, high = max(0, math.floor(mean - 14 * spread - 60)), min(size, math.ceil(mean + reach))
    counts = np.arange(low, high + 1)
    log_mass = stats.binom.logpmf(counts, size, chance)
    terms = log_rate[:, None] * np.sqrt(counts + plus) + log_mass
    total = special.logsumexp(terms, axis=1)
    if high < size:
        tail = stats.binom.logsf(high, size, chance) + log_rate * math.sqrt(size + plus)
        total = np.logaddexp(total, tail)
    if low > 0:
        head = stats.binom.logcdf(low - 1, size, chance) + log_rate * math.sqrt(low + plus)
        total = np.logaddexp(total, head)
    result: Array = total
    return result


def chernoff_norm(
    rows: int, columns: int, presence: float, delta: float, *, scale: float = 1, union: float = 1
) -> float:
    """Threshold for very large iid matrices in the class C(A, ρ) at all orders.

    With Φ(λ) = ln E e^{λ√(N+1)} + ln E e^{λ√M} + ln E e^{λξ}, N ~ Bin(n−1, ρ), M ~ Bin(m, ρ),
    P(ξ > t) = e^{−t²/2}: t = A · 2⌈(ln(n·union/δ) + Φ(λ)) / 2⌉ / λ, best λ in [0.3, 40], and the
    same with the sides exchanged.
    """
    best = math.inf
    # a geometric grid, then a finer one around its best point: any λ is valid
    for n, m in {(rows, columns), (columns, rows)}:
        grid = np.geomspace(0.3, 40, 40)
        for _ in range(2):
            rayleigh = np.logaddexp(
                0, np.log(grid) + 0.5 * math.log(2 * math.pi) + grid**2 / 2 + special.log_ndtr(grid)
            )
            phi = (
                _log_root_moment(grid, n - 1, presence, 1)
                + _log_root_moment(grid, m, presence, 0)
                + rayleigh
            )
            values = 2 * np.ceil((math.log(n * union / delta) + phi) / 2) / grid
            at = int(values.argmin())
            best = min(best, float(values[at]))
            grid = np.linspace(grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)], 30)
    return scale * best


def davidson_szarek(rows: int, columns: int, std: float, delta: float) -> float:
    """Threshold s(√n + √m + √(2 ln 1/δ)) for an unmasked Gaussian matrix.

    References:
        Davidson & Szarek (2001), Local operator theory, random matrices and Banach spaces.
    """
    return std * (math.sqrt(rows) + math.sqrt(columns) + math.sqrt(-2 * math.log(delta)))


def matrix_bernstein(
    rows: int, columns: int, variance: float, bound: float, delta: float, *, union: float = 1
) -> float:
    """Threshold RΛ/3 + √((RΛ/3)² + 2vΛ), Λ = ln((n + m)·union/δ), for centred entries.

    Args:
        rows: number of rows.
        columns: number of columns.
        variance: v, the largest sum of variances over a row or a column.
        bound: R, the largest |entry|.
        delta: failure probability.
        union: number of matrices of which none may exceed the threshold.

    References:
        Tropp (2012), Foundations of Computational Mathematics 12, Theorem 1.6.
    """
    log = math.log((rows + columns) * union / delta)
    linear = bound * log / 3
    return linear + math.sqrt(linear * linear + 2 * variance * log)


def concentrated_norm(expected: float, length: float, delta: float) -> float:
    """E‖D‖ + ℓ √(2 ln 1/δ): independent entries in intervals of length ℓ.

    References:
        Boucheron, Lugosi & Massart (2013), Concentration Inequalities, Theorem 6.10.
    """
    return expected + length * math.sqrt(-2 * math.log(delta))


def heavy_tail(rows: int, columns: int, variance: float, fourth: float, delta: float) -> float:
    """Threshold from variance and fourth moment alone (iid symmetric entries).

    Entries are split at τ: the small part by the walk moments at δ₁, the large part by Markov on
    the Frobenius norm, √(n m μ₄ / (τ² δ₂)), best τ and δ₁ + δ₂ = δ; never above the Frobenius
    Markov bound √(n m v / δ), which knows the energy of the matrix only.
    """
    v, mu4 = positive("variance", variance), positive("fourth", fourth)
    if mu4 < v * v * (1 - 1e-12):
        raise ValueError(f"no such distribution: fourth moment {fourth!r} < variance² {v * v!r}.")
    fraction("delta", delta)
    cut = np.geomspace(math.sqrt(v), 1e4 * math.sqrt(v), 161)
    logs = np.minimum(
        math.log(v) + (2 * HALF_ORDERS - 2) * np.log(cut)[:, None],
        math.log(mu4) + (2 * HALF_ORDERS - 4) * np.log(cut)[:, None],
    )
    logs[:, 0] = math.log(v)
    best = math.sqrt(rows * columns * v / delta)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        small = iid_norm_curve(rows, columns, logs, (1 - share) * delta)
        large = np.sqrt(rows * columns * mu4 / (cut**2 * share * delta))
        best = min(best, float((small + large).min()))
    return best


def latala(rows: int, columns: int, log_moments: Any, delta: float, constant: float = 1.0) -> float:
    """Latała's expectation bound with an assumed constant, and Markov: a prediction, no bound.

    C(√(m E D²) + √(n E D²) + (n m E D⁴)^{1/4}) / δ; the universal C of the theorem is unspecified,
    so no certificate uses this value.

    References:
        Latała (2005), Proc. AMS 133.
    """
    logs = np.asarray(log_moments, dtype=np.float64)
    std = math.exp(logs[0] / 2)
    fourth = math.exp((math.log(rows) + math.log(columns) + logs[1]) / 4)
    return constant * (std * (math.sqrt(rows) + math.sqrt(columns)) + fourth) / delta
