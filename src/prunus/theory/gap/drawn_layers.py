"""Thresholds of one layer's ‖W − V‖ over masks that are still to be drawn."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.check import as_float64, fraction, whole
from prunus.theory.gap.concentration import (
    NormBound,
    concentrated_norm,
    matrix_bernstein,
    profile_norm,
)
from prunus.theory.gap.convolution import Geometry, conv_norm, copies, frequencies
from prunus.theory.gap.laws import DOUBLE_FACTORIALS, HALF_ORDERS
from prunus.theory.gap.layer_norms import fixed_size_delta
from prunus.theory.gap.norms import spectral_norm

__all__ = ["drawn_conv_norm", "drawn_norm", "replacement_norm"]


def drawn_norm(
    weight: Any,
    density: Any,
    delta: float,
    *,
    rescaled: bool = True,
    kept: int | None = None,
) -> NormBound:
    """Threshold of ‖W − V‖ over the mask: independent entries kept with probability p_ij.

    D = E D + Ξ; Ξ is dominated in convex order by symmetric noise of size C max(p, 1 − p) present
    with probability 2 min(p, 1 − p), to which the walk moments of unequal entries apply; matrix
    Bernstein and concentration around the mean are the alternatives.

    Args:
        weight: W, (out, in).
        density: p, a number or a matrix like W.
        delta: failure probability.
        rescaled: V = W ∘ M / p; else V = W ∘ M, whose mean part is added exactly.
        kept: exact number of kept entries where masks have one (one density for all).

    Raises:
        ValueError: a density outside [0, 1], or 0 at a non-zero weight when rescaling.
    """
    w, p = _checked(as_float64("weight", weight, dims=2), density, delta, rescaled)
    share = _exact_share(p, delta, kept)
    mean = 0.0 if rescaled else spectral_norm((1 - p) * w).value
    noise, route = _noise_norm(_sizes(w, p, rescaled).numpy(), p.numpy(), share)
    return NormBound(value=mean + noise, route=route, delta=delta)


def drawn_conv_norm(
    kernel: Any,
    density: Any,
    delta: float,
    geometry: Geometry,
    *,
    rescaled: bool = True,
    kept: int | None = None,
) -> NormBound:
    """Threshold of ‖W − V‖ over the mask for a convolution, as a map of images.

    The noise at every frequency is Σ_k Ξ_ock e^{−iωk}; its trace moments are at most those at
    ω = 0, where a sum of K entries of the class C(A, ρ_k) is of the class C(A √K, mean ρ_k).
    Matrix Bernstein holds at each frequency. A union over the frequencies and the groups; the
    reshape √(kh·kw) ‖(c_out·kh) × (c_in·kw)‖ is the alternative. A stride only chooses outputs;
    padding by pixels of the image costs √`copies`.

    Args:
        kernel: W, (out, in / groups, height, width).
        density: p, a number or a tensor like W.
        delta: failure probability.
        geometry: how the kernel meets its images.
        rescaled: V = W ∘ M / p; else V = W ∘ M, whose mean part is added exactly.
        kept: exact number of kept entries where masks have one (one density for all).
    """
    w = as_float64("kernel", kernel, dims=4)
    outs, ins, high, wide = w.shape
    flat, p = _checked(w.reshape(outs, -1), density, delta, rescaled)
    share = _exact_share(p, delta, kept)
    p = p.reshape(w.shape)
    mean = 0.0 if rescaled else conv_norm((1 - p) * w, geometry).value
    size = _sizes(flat.reshape(w.shape), p, rescaled)
    groups = geometry.groups
    union = frequencies((high, wide), geometry) * groups
    values: dict[str, float] = {}
    for part, chance in zip(
        size.reshape(groups, -1, ins, high, wide), p.reshape(groups, -1, ins, high, wide),
        strict=True,
    ):  # fmt: skip
        found = {"frequencies": _noise_norm(part.numpy(), chance.numpy(), share, union=union)[0]}
        flat_size, flat_p = (
            t.permute(0, 2, 1, 3).reshape(part.shape[0] * high, -1).numpy() for t in (part, chance)
        )
        flat_noise = _noise_norm(flat_size, flat_p, share / groups)[0]
        found["reshape"] = math.sqrt(high * wide) * flat_noise
        for route, value in found.items():
            values[route] = max(values.get(route, 0.0), value)
    route = min(values, key=values.__getitem__)
    _, factor = copies(geometry, (high, wide))
    return NormBound(value=mean + factor * values[route], route=route, delta=delta)


def _checked(weight: Tensor, density: Any, delta: float, rescaled: bool) -> tuple[Tensor, Tensor]:
    p = torch.as_tensor(density, dtype=torch.float64)
    p = p.reshape(weight.shape) if p.numel() == weight.numel() > 1 else p.expand_as(weight)
    if bool(((p < 0) | (p > 1)).any()) or not bool(torch.isfinite(p).all()):
        raise ValueError("`density` must lie in [0, 1] everywhere.")
    fraction("delta", delta)
    if rescaled and bool(((p == 0) & (weight != 0)).any()):
        raise ValueError("`density` is 0 at a non-zero weight, which rescaling divides by.")
    return weight, p


def _exact_share(p: Tensor, delta: float, kept: int | None) -> float:
    """δ for independent masks so that masks of an exact size fail with at most `delta`."""
    if kept is None:
        return delta
    if bool((p != p.flatten()[0]).any()):
        raise ValueError("masks of an exact size are covered for one density only.")
    return fixed_size_delta(delta, p.numel(), whole("kept", kept, low=0, high=p.numel()))


def _sizes(weight: Tensor, p: Tensor, rescaled: bool) -> Tensor:
    """C: |W| / p, or |W|; 0 where nothing is random."""
    size = weight.abs() / p.clamp_min(1e-300) if rescaled else weight.abs()
    return torch.where(p == 1, 0.0, size)


def _noise_norm(
    size: np.ndarray, p: np.ndarray, delta: float, *, union: float = 1
) -> tuple[float, str]:
    """Threshold of the noise; with further axes (taps), of every frequency's matrix."""
    rows, columns = size.shape[:2]
    taps = math.prod(size.shape[2:])
    height = size * np.maximum(p, 1 - p)
    present = np.where(p == 1, 0.0, 2 * np.minimum(p, 1 - p))
    largest = float(height.max())
    if largest == 0:
        return 0.0, "nothing pruned"
    variances = (size**2 * p * (1 - p)).reshape(rows, columns, taps).sum(axis=2)
    variance = float(max(variances.sum(axis=0).max(), variances.sum(axis=1).max()))
    values = {
        "matrix Bernstein": matrix_bernstein(
            rows, columns, variance, largest, delta, union=union
        )
    }  # fmt: skip
    means = []
    for scale in largest * np.linspace(0.25, 1, 16):
        ratio = (height / scale) ** 2
        density = present * _order_maximum(ratio)
        if density.max() > 1:
            continue
        density = density.reshape(rows, columns, taps).mean(axis=2)
        by_row, by_column = float(density.sum(axis=1).max()), float(density.sum(axis=0).max())
        spread = float(scale) * math.sqrt(taps)  # of a sum over the taps
        value = profile_norm(rows, columns, spread, by_row, by_column, delta, union=union)
        values["walk moments"] = min(value, values.get("walk moments", math.inf))
        means.append(profile_norm(rows, columns, spread, by_row, by_column, 1.0))
    if means and union == 1:
        length = float(np.where(p == 1, 0, size).max())
        values["concentration"] = concentrated_norm(min(means), length, delta)
    route = min(values, key=values.__getitem__)
    return values[route], route


def _order_maximum(ratio: np.ndarray) -> np.ndarray:
    """h(y) = max_{k ≥ 1} y^k / (2k − 1)!!, equal to y for y ≤ 3."""
    orders = HALF_ORDERS[:40]
    with np.errstate(divide="ignore"):
        logs = np.log(ratio)
    # y ≤ 16 on the grid of scales, where the maximum stands at k ≤ 8: 40 orders suffice
    found = np.where(ratio <= 3, ratio, 0.0)
    big = ratio > 3
    if big.any():
        terms = logs[big][:, None] * orders - DOUBLE_FACTORIALS[:40]
        found[big] = np.exp(terms.max(axis=1))
    return found


def replacement_norm(weight: Any, probabilities: Any, draws: int, delta: float) -> NormBound:
    """Threshold of ‖W − V‖ for V = (1/T) Σ W_ij / π_ij at T places drawn with replacement.

    Matrix Bernstein with ν = max row or column sum of W²/π and R = max |W|/π + ‖W‖.
    """
    w = as_float64("weight", weight, dims=2)
    pi = as_float64("probabilities", probabilities, dims=2)
    count = whole("draws", draws, low=1)
    if abs(float(pi.sum()) - 1) > 1e-9 or bool((pi < 0).any()):
        raise ValueError("`probabilities` must be >= 0 and sum to 1.")
    if bool(((pi == 0) & (w != 0)).any()):
        raise ValueError("`probabilities` is 0 at a non-zero weight, which is divided by it.")
    safe = pi.clamp_min(1e-300)
    squares = torch.where(w == 0, 0.0, w.square() / safe)
    variance = float(torch.maximum(squares.sum(dim=0).max(), squares.sum(dim=1).max()))
    largest = float((w.abs() / safe).max()) + spectral_norm(w).value
    log = math.log((w.shape[0] + w.shape[1]) / fraction("delta", delta))
    linear = largest * log / (3 * count)
    value = linear + math.sqrt(linear**2 + 2 * variance * log / count)
    return NormBound(value=value, route="matrix Bernstein, with replacement", delta=delta)
