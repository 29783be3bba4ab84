"""Intervals of a mean, paired differences, and Holm's correction: functions of numbers alone."""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.means import mean, standard_error
from prunus.rng import generator_for

__all__ = ["bootstrap_interval", "holm", "paired", "sign_test", "t_interval"]

DRAWS = 10_000  # of the bootstrap
ROUNDING = 1e-12  # differences below it, as a share of the scores, are those of the arithmetic


@functools.lru_cache(maxsize=256)
def _t_quantile(probability: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean, mean ± t · s / √n.

    None for fewer than two values, and where one is not finite. Exact for independent normal
    values.
    """
    if standard_error(values) is None:
        return None
    n, centre = len(values), statistics.fmean(values)
    reach = _t_quantile((1 + level) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return centre - reach, centre + reach


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean; None where `t_interval` is.

    With few values it is too narrow: five values give about 84 % coverage at level 0.95.
    """
    import torch

    if standard_error(values) is None:
        return None
    chosen = torch.randint(
        len(values), (draws, len(values)), generator=generator_for(seed, "bootstrap")
    )
    means = torch.tensor(values, dtype=torch.float64)[chosen].mean(1)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(means, ends).tolist()
    return low, high


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> dict[str, Any]:
    """The mean of a − b over the seeds that both have, with Student's interval and test.

    Differences that are all alike, as few test samples give them, have no spread to judge by: they
    get no interval, and the p-value of the sign test, 2^(1 − n), or 1 where they are zero. The sign
    test stands in also where a difference is not finite, as of networks that came apart.

    Returns:
        `seeds`, `mean`, `low`, `high` and the two-sided `p`. Fewer than two shared seeds give no
        interval and p = 1.
    """
    from scipy.special import stdtr

    seeds = sorted(set(a) & set(b))
    gaps = [a[s] - b[s] for s in seeds]
    n = len(gaps)
    centre = mean(gaps) if gaps else None
    found: dict[str, Any] = {"seeds": n, "mean": centre, "low": None, "high": None, "p": 1.0}
    if centre is None or n < 2:
        return found
    error = standard_error(gaps)
    if error is None:
        return found | {"p": sign_test(gaps)}
    scale = max(abs(v) for s in seeds for v in (a[s], b[s]))
    if error <= ROUNDING * scale:
        alike = abs(centre) <= ROUNDING * scale
        return found | {"p": 1.0 if alike else 2.0 ** (1 - n)}
    ends = t_interval(gaps, level)
    assert ends is not None  # n >= 2
    p = 2 * float(stdtr(n - 1, -abs(centre) / error))
    return found | {"low": ends[0], "high": ends[1], "p": p}


def sign_test(gaps: Sequence[float]) -> float:
    """The two-sided p-value of the sign test: zeros, and what is NaN, are left out."""
    up, down = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    tail = sum(math.comb(up + down, i) for i in range(min(up, down) + 1))
    return min(1.0, tail * 2.0 ** (1 - up - down))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: rejecting those ≤ α errs in any with probability ≤ α."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted
