"""Relative errors of a layer from the shares of its weights: SiPP and PFP.

z = Σ_j w_j x_j is made of sums of one sign, z^± = Σ_{±w > 0} |w_j| a_j with a the positive or the
negative part of x. g_j(x) = |w_j| a_j / z^± is the share of weight j in its sum, and s_j ≥ g_j(x)
for all x of a set S, such as the largest over S. Everything here is relative to Σ_j |w_j| |x_j|.
Proofs: docs/sampling_methods.md.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import as_float64, fraction, positive, whole

__all__ = [
    "drawn_error",
    "draws_needed",
    "equal_error_draws",
    "exceeding",
    "known_error",
    "least_sum_draws",
    "replacement_error",
    "sharpest_error",
]

SUMS = 4  # of one sign that make up an output: two signs of weights, two of inputs


def known_error(weight: Any, new: Any, share: Any) -> Float[Tensor, "out 2"]:
    """β with |z'_i − z_i| ≤ β_i⁺ z_i⁺ + β_i⁻ z_i⁻ for every x in S, z' of the new weights.

    Over all shares with 0 ≤ g ≤ s and Σ g = 1 the largest of Σ r_j g_j, r_j = |w'_j − w_j| / |w_j|:
    weights are taken in descending r, each to its s, until 1 is full. Where weights only go
    (r is 0 or 1) this is min(1, Σ of their s).

    Args:
        weight: W (out, in).
        new: W' (out, in). A weight that was 0 and is not has no share, and its row's β is ∞.
        share: s (out, in), in [0, 1].

    Returns:
        β of the positive and of the negative weights of each row.

    References:
        Baykal et al. (2022), SiPPing neural networks, section 4.2, for weights that only go.
    """
    w, v, s = _alike(weight, new, share)
    change = torch.where(w == v, 0.0, (v - w).abs() / w.abs())  # ∞ from a weight that was 0
    lost = torch.isinf(change).any(1)
    change = change.masked_fill(torch.isinf(change), 0.0)
    found = torch.stack([_fullest(change, s, sign) for sign in (w > 0, w < 0)], 1)
    return found.masked_fill(lost[:, None], math.inf)


def drawn_error(
    odds: Any, share: Any, weight: Any, delta: float, *, sums: int | None = None
) -> Float[Tensor, " out"]:
    """ε with P(|z'_i − z_i| ≥ ε_i Σ_j |w_ij| |x_j| for any i) ≤ δ over the draw, x in S fixed.

    z' of the kept weights over their probabilities π, drawn independently or by `pivotal_sample`.
    Bernstein's ε = bL/3 + √((bL/3)² + 2vL), L = ln(2 · sums / δ), with v ≥ Σ g² (1/π − 1) and
    b ≥ every term, both the largest that shares g ≤ s allow.

    Args:
        odds: π (out, in), in (0, 1].
        share: s (out, in).
        weight: W (out, in), whose signs part the sums.
        delta: δ, for all rows together.
        sums: how many sums must hold at once; 4 per row where None (two signs of weights and of
            inputs each).
    """
    w, p, s = _alike(weight, odds, share)
    if bool(((p <= 0) | (p > 1)).any()):
        raise ValueError("`odds` must lie in (0, 1]: a weight of probability 0 has no bound.")
    count = SUMS * len(w) if sums is None else whole("sums", sums, low=1)
    log = math.log(2 * count / fraction("delta", delta))
    surplus = 1 / p - 1
    unsure = torch.where(p < 1, s * torch.maximum(surplus, torch.ones_like(p)), 0.0)
    both = []
    for sign in (w > 0, w < 0):
        spread = _fullest(s * surplus, s, sign)
        step = (unsure * sign).amax(1) * log / 3 if w.shape[1] else torch.zeros(len(w)).double()
        both.append(step + (step.square() + 2 * spread * log).sqrt())
    return torch.maximum(*both)


def replacement_error(total: float, draws: int, delta: float) -> float:
    """ε with P(|ẑ − z| ≥ ε z) ≤ δ for m draws with replacement, q = s / S (Bernstein).

    ε = [SL/3 + √((SL/3)² + 2 (S − 1) L m)] / m, L = ln(2/δ): each draw's w a / q has mean z, lies
    in [0, S z] and has variance ≤ (S − 1) z².

    Args:
        total: S = Σ s over the sum's weights, ≥ 1 where any of them is ever active.
        draws: m.
        delta: for one sum and one fixed x of S.
    """
    m, log = whole("draws", draws, low=1), _log(delta)
    size = max(1.0, positive("total", total))
    step = size * log / 3
    return (step + math.sqrt(step * step + 2 * (size - 1) * log * m)) / m


def draws_needed(total: float, eps: float, delta: float) -> int:
    """The fewest draws with replacement of relative error ε: m ≥ (2 (S − 1) + ⅔ S ε) ln(2/δ) / ε².

    Raises:
        ValueError: ε ≤ 0, δ outside (0, 1), or S ≤ 0.
    """
    size, e = max(1.0, positive("total", total)), positive("eps", eps)
    return max(1, math.ceil((2 * (size - 1) + 2 * size * e / 3) * _log(delta) / e**2))


def sharpest_error(total: float, draws: int, delta: float) -> float:
    """`replacement_error` by Chernoff's bound: the least ε with m · KL ≥ ln(2/δ) on both sides.

    Draws over S z lie in [0, 1] with mean 1/S, so the tails are at most exp(−m KL((1 ± ε)/S, 1/S)).
    Never larger than Bernstein's ε; ∞ where no upper tail up to S − 1 is so rare.
    """
    m, log = whole("draws", draws, low=1), _log(delta)
    size = max(1.0, positive("total", total))
    if size == 1:
        return 0.0
    mean = 1 / size

    def rate(eps: float) -> float:
        upper = _kl(min(1.0, (1 + eps) * mean), mean)
        return m * (min(upper, _kl((1 - eps) * mean, mean)) if eps < 1 else upper)

    low, high = 0.0, size - 1
    if rate(high) < log:
        return math.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) < log else (low, middle)
    return high


def equal_error_draws(totals: Sequence[float], draws: int, delta: float) -> list[int]:
    """Draws for every sum, `draws` in all, so that Bernstein's ε is one and the same for all.

    One bisection in ε: m_i(ε) is in closed form. Every sum has at least one draw; rounding gives
    the last ones to the sums of largest ε.

    Args:
        totals: S of every sum.
        draws: in all, at least one for each sum.
        delta: of each sum.
    """
    sizes = _totals(totals, draws)
    log = _log(delta)

    def wanted(eps: float) -> list[float]:
        return [(2 * (s - 1) + 2 * s * eps / 3) * log / eps**2 for s in sizes]

    low, high = 1e-12, 1.0
    while sum(wanted(high)) > draws:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(wanted(middle)) > draws else (low, middle)
    return _rounded(wanted(high), sizes, draws, lambda s, m: replacement_error(s, m, delta))


def least_sum_draws(totals: Sequence[float], draws: int, delta: float) -> list[int]:
    """Draws for every sum, `draws` in all, of least Σ ε_i: −ε_i'(m_i) is one and the same μ.

    ε is convex in m, so a bisection in μ around one in every m_i finds it: no solver is needed.

    Args:
        totals: S of every sum.
        draws: in all, at least one for each sum.
        delta: of each sum.

    References:
        Baykal et al. (2022), whose code gives the same problem to a convex solver.
    """
    sizes = torch.tensor(_totals(totals, draws), dtype=torch.float64)
    log = _log(delta)
    a, b = sizes * log / 3, 2 * (sizes - 1) * log

    def gain(m: Tensor) -> Tensor:  # −dε/dm of ε = (a + √(a² + b m)) / m
        root = (a.square() + b * m).sqrt()
        return (a + root) / m.square() - b / (2 * root * m)

    def at(mu: float) -> Tensor:
        low, high = torch.ones_like(sizes), torch.full_like(sizes, float(draws))
        for _ in range(100):
            middle = (low * high).sqrt()
            more = gain(middle) > mu
            low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        return high

    low, high = 1e-30, float(gain(torch.ones_like(sizes)).max())
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if float(at(middle).sum()) > draws else (low, middle)

    def drop(s: float, m: int) -> float:
        return replacement_error(s, m, delta) - replacement_error(s, m + 1, delta)

    return _rounded(at(high).tolist(), sizes.tolist(), draws, drop)


def exceeding(samples: int) -> float:
    """1 / (n + 1): the probability that a weight's share at a fresh x exceeds its s.

    Over the draw of the n samples of S and of x together, which are exchangeable: any of the
    n + 1 is alone the largest with at most this probability. Given one S it may be more.
    """
    return 1 / (whole("samples", samples, low=1) + 1)


def _fullest(value: Tensor, share: Tensor, sign: Tensor) -> Float[Tensor, " out"]:
    """max Σ value g over 0 ≤ g ≤ share, Σ g ≤ 1, within the weights of a sign."""
    order = value.masked_fill(~sign, -1.0).argsort(dim=1, descending=True, stable=True)
    room = (share * sign).gather(1, order)
    taken = torch.minimum(room, (1 - (room.cumsum(1) - room)).clamp(min=0))
    return (value.gather(1, order) * taken).sum(1)


def _alike(weight: Any, other: Any, share: Any) -> tuple[Tensor, Tensor, Tensor]:
    w, v, s = (
        as_float64(name, given, dims=2)
        for name, given in (("weight", weight), ("new weights or odds", other), ("share", share))
    )
    if not w.shape == v.shape == s.shape:
        raise ValueError(
            f"weights, their changes and their shares must have one shape, got {tuple(w.shape)}, "
            f"{tuple(v.shape)} and {tuple(s.shape)}."
        )
    if bool(((s < 0) | (s > 1)).any()):
        raise ValueError("`share` must lie in [0, 1]. Collect it with calibrate(…, 'share').")
    return w, v, s


def _log(delta: float) -> float:
    return math.log(2 / fraction("delta", delta))


def _kl(p: float, q: float) -> float:
    """KL(p ‖ q) of two coins."""
    first = p * math.log(p / q) if p > 0 else 0.0
    return first + ((1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0)


def _totals(totals: Sequence[float], draws: int) -> list[float]:
    sizes = [max(1.0, positive("totals", total)) for total in totals]
    if not sizes or whole("draws", draws, low=1) < len(sizes):
        raise ValueError(f"`draws` must give each of {len(sizes)} sums one at least, got {draws}.")
    return sizes


def _rounded(wanted: Sequence[float], sizes: Sequence[float], draws: int, need: Any) -> list[int]:
    """Whole numbers of the given sum, each at least 1; what is over goes where `need` is most."""
    import heapq

    found = [max(1, math.floor(m)) for m in wanted]
    rest = draws - sum(found)
    sign = 1 if rest > 0 else -1
    queue = [(-sign * need(s, m), i) for i, (s, m) in enumerate(zip(sizes, found, strict=True))]
    heapq.heapify(queue)
    while rest:
        _, i = heapq.heappop(queue)
        if sign < 0 and found[i] == 1:
            continue
        found[i] += sign
        rest -= sign
        heapq.heappush(queue, (-sign * need(sizes[i], found[i]), i))
    return found
