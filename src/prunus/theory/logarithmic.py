"""Logarithmic pruning: a weight as a short sum of random samples, one from each golden interval."""

import bisect
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from prunus.check import as_float64, fraction, positive, unknown, whole

__all__ = [
    "GOLDEN",
    "Decomposition",
    "decompose",
    "golden_intervals",
    "golden_pieces",
    "hyperbolic",
    "samples_needed",
]

GOLDEN = (math.sqrt(5) - 1) / 2  # γ, with γ + γ² = 1
RULES = ("interval", "largest")


def golden_pieces(eps: float) -> int:
    """K = ⌈ln(1/ε) / ln(1/γ)⌉: samples that meet any weight in (0, 1] to ε, one per interval.

    With γ + γ² = 1: a residual r in (γ^(k+1), γ^k] less any sample of [γ^(k+2), γ^(k+1)] leaves
    between 0 and γ^(k+1). γ is the only base for which these intervals tile the axis.

    Raises:
        ValueError: ε outside (0, 1/2).

    References:
        Orseau, Hutter, Rivasplata (2020), Logarithmic pruning is all you need, for the idea; the
        golden form is proved in docs/subset_sum.md.
    """
    return math.ceil(math.log(1 / _precision(eps)) / math.log(1 / GOLDEN) - 1e-12)


def golden_intervals(eps: float) -> Float[Tensor, "pieces 2"]:
    """[γ^(k+1), γ^k] for k = 1 … K, largest first: where the samples come from."""
    k = torch.arange(1, golden_pieces(eps) + 1, dtype=torch.float64)
    return torch.stack([GOLDEN ** (k + 1), GOLDEN**k], 1)


def samples_needed(eps: float, delta: float, weights: int = 1, *, shared: bool = False) -> int:
    """Hyperbolic samples with which all weights are met to ε, with probability at least 1 − δ.

    One weight, or a pool that all weights may share: M = K ln(K/δ), since K (1 − 1/K)^M bounds the
    probability that an interval is empty. A pool in which each sample serves one of N weights:
    M = K (N + L + √(L² + 2 N L)), L = ln(K/δ), by Chernoff's bound on each interval's count.

    Returns:
        M in all (not per weight).
    """
    count = whole("weights", weights, low=1)
    pieces = golden_pieces(eps)
    log = math.log(pieces / fraction("delta", delta))
    if count == 1 or shared:
        return max(1, math.ceil(pieces * log))
    return math.ceil(pieces * (count + log + math.sqrt(log * log + 2 * count * log)))


def hyperbolic(count: int, eps: float, *, generator: Generator) -> Float[Tensor, " count"]:
    """Samples with density ∝ 1/v on [γ^(K+1), γ], which hit each golden interval alike."""
    pieces = golden_pieces(eps)
    u = torch.rand(whole("count", count, low=0), dtype=torch.float64, generator=generator)
    return GOLDEN ** (1 + pieces * u)


@dataclass(frozen=True, eq=False, kw_only=True)
class Decomposition:
    """Weights as sums of samples.

    Attributes:
        mask: Bool[weights, samples], which samples make up each weight.
        residual: what is left of each weight, ≥ 0.
        met: whether the residual is at most ε.
    """

    mask: Bool[Tensor, "weights samples"]
    residual: Float[Tensor, " weights"]
    met: Bool[Tensor, " weights"]

    @property
    def pieces(self) -> float:
        """Mean number of samples per weight."""
        return float(self.mask.sum(1).to(torch.float64).mean())


def decompose(
    samples: Any,
    targets: Any,
    eps: float,
    *,
    rule: str = "largest",
    shared: bool = True,
) -> Decomposition:
    """Take samples off each weight until at most ε is left, largest weights first.

    Args:
        samples: positive numbers, such as `hyperbolic` draws.
        targets: weights in [0, 1]; a negative weight is met by its size, with the other sign.
        eps: where to stop.
        rule: "interval", the sample of the residual's own golden interval (what the proof uses), or
            "largest", the largest sample that is no larger than the residual, which needs a third
            of them (docs/subset_sum.md).
        shared: weights may use the same sample; else each sample serves one weight. Within one
            weight a sample is used once.

    Raises:
        ValueError: a weight outside [0, 1], a sample that is not positive, NaN, or a bad ε.
    """
    v, w = (
        as_float64("samples", samples, dims=1).cpu(),
        as_float64("targets", targets, dims=1).cpu(),
    )
    eps = _precision(eps)
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    if len(v) and float(v.min()) <= 0:
        raise ValueError(f"`samples` must be positive, got {float(v.min()):.3g}. Pass their sizes.")
    if len(w) and not (float(w.min()) >= 0 and float(w.max()) <= 1):
        worst = w[(w - 0.5).abs().argmax()]
        raise ValueError(
            f"`targets` must lie in [0, 1], got {float(worst):.3g}. Scale the weights, and pass "
            f"the size of negative ones."
        )
    sorted_v, order = v.sort()
    values = sorted_v.tolist()
    free = [True] * len(values)
    mask = torch.zeros(len(w), len(v), dtype=torch.bool)
    residual = w.clone()
    for i in w.argsort(descending=True, stable=True).tolist():
        own = free if not shared else [True] * len(values)
        left = float(w[i])
        while left > eps:
            place = _piece(values, own, left, rule)
            if place is None:
                break
            own[place] = False
            mask[i, order[place]] = True
            left -= values[place]
        residual[i] = max(left, 0.0)
    return Decomposition(mask=mask, residual=residual, met=residual <= eps)


def _piece(values: list[float], free: list[bool], left: float, rule: str) -> int | None:
    """The place of the largest free sample that the rule allows, among ascending values."""
    high, low = left, 0.0
    if rule == "interval":
        k = math.floor(math.log(left) / math.log(GOLDEN))  # left in (γ^(k+1), γ^k]
        low, high = GOLDEN ** (k + 2) * (1 - 1e-12), min(left, GOLDEN ** (k + 1))
    place = bisect.bisect_right(values, high) - 1
    while place >= 0 and values[place] >= low:
        if free[place]:
            return place
        place -= 1
    return None


def _precision(eps: float) -> float:
    number = positive("eps", eps)
    if number >= 0.5:
        raise ValueError(f"`eps` must lie in (0, 0.5), got {eps!r}.")
    return number
