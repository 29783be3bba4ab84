"""Statements from fresh data: what running both networks on n independent inputs proves."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.check import as_float64, fraction, positive, whole
from prunus.later import Later

__all__ = [
    "clopper_pearson",
    "empirical_bernstein",
    "exceedance",
    "exceedance_everywhere",
    "held_out_quantile",
    "robustly_unchanged",
    "sample_size_for_quantile",
]

special = Later("scipy.special")


def clopper_pearson(events: int, samples: int, delta: float) -> float:
    """Upper limit of a probability from k events in n independent trials, exact.

    P(p > BetaInv(1 − δ; k + 1, n − k)) ≤ δ; 1 where k = n.

    References:
        Clopper & Pearson (1934), Biometrika 26.
    """
    n = whole("samples", samples, low=1)
    k = whole("events", events, low=0, high=n)
    fraction("delta", delta)
    if k == n:
        return 1.0
    return 1 - float(special.betaincinv(n - k, k + 1, delta))


def exceedance(gaps: Any, threshold: float, delta: float) -> float:
    """Upper limit of P(gap > t) for a threshold t fixed before the data."""
    g = _sample(gaps)
    return clopper_pearson(int((g > threshold).sum()), len(g), delta)


def exceedance_everywhere(gaps: Any, delta: float) -> float:
    """The excess √(ln(1/δ) / 2n): P(gap > t) ≤ k(t)/n + excess for all t at once, δ ≤ 1/2.

    References:
        Massart (1990), Annals of Probability 18.
    """
    if not 0 < delta <= 0.5:
        raise ValueError(f"`delta` must lie in (0, 1/2], got {delta!r}.")
    return math.sqrt(-math.log(delta) / (2 * len(_sample(gaps))))


def sample_size_for_quantile(level: float, delta: float) -> int:
    """Fewest samples whose largest value bounds the quantile at `level`: ⌈ln δ / ln level⌉."""
    return math.ceil(math.log(fraction("delta", delta)) / math.log(fraction("level", level)))


def held_out_quantile(gaps: Any, level: float, delta: float) -> float:
    """A value that at least a share `level` of fresh gaps does not exceed, with P ≥ 1 − δ.

    The order statistic g_(j), j the least index with P(Bin(n, level) ≤ j − 1) ≥ 1 − δ.

    Raises:
        ValueError: the sample is too small; the message gives the size needed.

    References:
        Wilks (1941), Annals of Mathematical Statistics 12.
    """
    from scipy import stats  # half a second that most calls do not need

    g = _sample(gaps).sort().values
    fraction("level", level)
    fraction("delta", delta)
    n = len(g)
    j = int(stats.binom.ppf(1 - delta, n, level)) + 1
    while j > 1 and stats.binom.cdf(j - 2, n, level) >= 1 - delta:
        j -= 1
    while j <= n and stats.binom.cdf(j - 1, n, level) < 1 - delta:
        j += 1
    if j > n:
        raise ValueError(
            f"`gaps` has {n} samples, too few for the quantile at {level}: take at least "
            f"{sample_size_for_quantile(level, delta)}."
        )
    return float(g[j - 1])


def empirical_bernstein(gaps: Any, largest: float, delta: float) -> float:
    """Upper limit of E gap: ḡ + √(2V ln(2/δ)/n) + 7G ln(2/δ) / (3(n − 1)), 0 ≤ gap ≤ G.

    Args:
        gaps: measured gaps on fresh inputs, at least two.
        largest: G, a bound on every gap the distribution can produce.
        delta: failure probability.

    References:
        Maurer & Pontil (2009), Empirical Bernstein bounds, Theorem 4.
    """
    g = _sample(gaps)
    if not math.isfinite(largest):
        raise ValueError(
            "a bound on the mean needs a finite `largest` gap, got none. Use a quantile instead."
        )
    bound = positive("largest", largest, zero=True)
    if float(g.max()) > bound:
        raise ValueError(f"`largest` = {bound:.4g} is below a measured gap {float(g.max()):.4g}.")
    n = whole("number of gaps", len(g), low=2)
    log = math.log(2 / fraction("delta", delta))
    spread = math.sqrt(2 * float(g.var()) * log / n)
    return float(g.mean()) + spread + 7 * bound * log / (3 * (n - 1))


def robustly_unchanged(
    outputs: Float[Tensor, "samples classes"], gaps: Float[Tensor, " samples"]
) -> Bool[Tensor, " samples"]:
    """Which predictions no network within the gap can change: margin > √2 · gap.

    |(F − f)_i − (F − f)_j| ≤ √2 ‖F − f‖ for any two outputs.
    """
    if outputs.shape[1] < 2:
        raise ValueError(f"predictions need two outputs or more, got {outputs.shape[1]}.")
    top = outputs.topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]) > math.sqrt(2) * gaps


def _sample(gaps: Any) -> Tensor:
    g = as_float64("gaps", gaps, dims=1)
    if len(g) == 0:
        raise ValueError("`gaps` is empty: run both networks on at least one fresh input.")
    return torch.as_tensor(g)
