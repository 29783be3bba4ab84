"""Shapes, laws and pruned parts of a network that has not been drawn yet."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from prunus.check import fraction, unknown, whole
from prunus.counting import count_of
from prunus.theory.gap.activations import Activation, activation
from prunus.theory.gap.concentration import iid_norm
from prunus.theory.gap.laws import METHODS, PRESETS, Law, Method, sum_of_copies
from prunus.theory.gap.layer_norms import layer_norm, magnitude_threshold, part_moments

__all__ = [
    "LayerShape",
    "Network",
    "NormRule",
    "global_densities",
    "global_threshold",
    "norm_bound",
    "pruned_count",
    "random_network",
    "threshold_of",
]


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A linear map to be drawn: a matrix, or a convolution where `kernel` is given.

    Attributes:
        outputs: rows, or output channels.
        inputs: columns, or input channels.
        kernel: height and width of a convolution's kernel.
        grid: pixels (height, width) of a grid on which the circular convolution contains it: the
            image enlarged by the padding.
        stride: step per axis.
        gain: Lipschitz constant of what stands between this activation and the next layer, such
            as pooling.
    """

    outputs: int
    inputs: int
    kernel: tuple[int, int] = (1, 1)
    grid: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)
    gain: float = 1.0

    @property
    def total(self) -> int:
        """Number of weights N."""
        return self.outputs * self.inputs * self.kernel[0] * self.kernel[1]

    @property
    def fan_in(self) -> int:
        """Weights that enter one output."""
        return self.inputs * self.kernel[0] * self.kernel[1]

    @property
    def units(self) -> int:
        """Scalars this layer puts out."""
        if self.grid is None:
            return self.outputs
        pixels = math.prod(-(-g // s) for g, s in zip(self.grid, self.stride, strict=True))
        return self.outputs * pixels

    @property
    def spread(self) -> float:
        """E‖W h‖² = spread · variance · ‖h‖²: d_i, or c_out ⌈kh/s⌉ ⌈kw/s⌉ of a convolution."""
        taps = math.prod(-(-k // s) for k, s in zip(self.kernel, self.stride, strict=True))
        return float(self.outputs * taps)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Layers, their laws and densities, the activations between them.

    Attributes:
        shapes: of the layers, input to output.
        laws: of one weight, per layer.
        densities: share of kept weights, per layer.
        activations: after each layer but the last.
        method: how the layers are pruned.
    """

    shapes: tuple[LayerShape, ...]
    laws: tuple[Law, ...]
    densities: tuple[float, ...]
    activations: tuple[Activation, ...]
    method: Method


def random_network(
    widths: Sequence[int] | Sequence[LayerShape],
    densities: float | Sequence[float],
    *,
    laws: str | Law | Sequence[Law] = "he_uniform",
    activations: str | Activation | Sequence[str | Activation] = "relu",
    method: Method = "random",
) -> Network:
    """A network to be drawn, from widths or shapes, with every argument checked.

    Args:
        widths: d_0, …, d_l, or the layers' shapes.
        densities: one for all layers, or one each.
        laws: a preset's name, one law, or one each.
        activations: one for all hidden layers, or one each.
        method: "random", "random_rescaled" or "magnitude".
    """
    shapes = _shapes(widths)
    count = len(shapes)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if isinstance(laws, str):
        if laws not in PRESETS:
            raise unknown("law", laws, PRESETS)
        chosen: tuple[Law, ...] = tuple(
            PRESETS[laws](s.outputs * s.kernel[0] * s.kernel[1], s.fan_in) for s in shapes
        )
    else:
        chosen = (laws,) * count if isinstance(laws, Law) else tuple(laws)
    _length("laws", len(chosen), count)
    kept = (densities,) * count if isinstance(densities, int | float) else tuple(densities)
    _length("densities", len(kept), count)
    for value in kept:
        fraction("density", value, zero=method != "random_rescaled", one=True)
    if isinstance(activations, str | Activation):
        functions = (activation(activations),) * (count - 1)
    else:
        functions = tuple(activation(a) for a in activations)
    _length("activations", len(functions), count - 1)
    if method == "magnitude" and not all(law.symmetric for law in chosen):
        raise ValueError("magnitude pruning needs symmetric laws: signs given sizes must be fair.")
    return Network(
        shapes=shapes,
        laws=chosen,
        densities=tuple(float(d) for d in kept),
        activations=functions,
        method=method,
    )


def _shapes(widths: Sequence[Any]) -> tuple[LayerShape, ...]:
    if len(widths) and isinstance(widths[0], LayerShape):
        return tuple(widths)
    sides = [whole("widths", d, low=1) for d in widths]
    if len(sides) < 2:
        raise ValueError(f"`widths` must name two sides or more, got {len(sides)}.")
    return tuple(LayerShape(outputs=n, inputs=m) for m, n in itertools.pairwise(sides))


def _length(name: str, given: int, needed: int) -> None:
    if given != needed:
        raise ValueError(f"`{name}` must have {needed} entries, one per layer, got {given}.")


def pruned_count(shape: LayerShape, density: float) -> int:
    """k = N − ⌊density · N + 1/2⌋."""
    return shape.total - count_of(density, shape.total)


def threshold_of(shape: LayerShape, law: Law, density: float, delta: float) -> float:
    """t⁺ that the layer's k-th smallest |w| exceeds with probability at most δ."""
    return magnitude_threshold(law, shape.total, pruned_count(shape, density), delta)


@functools.lru_cache(maxsize=4096)
def norm_bound(
    shape: LayerShape,
    law: Law,
    delta: float,
    method: Method = "random",
    density: float = 0.0,
    part: str = "pruned",
    threshold: float | None = None,
) -> float:
    """Threshold of the norm of W, D or V of one layer, matrices and convolutions alike.

    A convolution's frequencies are each dominated by the real matrix of sums of kh·kw entries,
    with a union over the ⌊N₁N₂/2⌋ + 2 that differ; the reshape √(kh·kw) ‖(c_out·kh) × (c_in·kw)‖
    is the alternative.
    """
    if part == "pruned" and method != "magnitude" and density == 1:
        return 0.0
    if part == "pruned" and method == "magnitude" and threshold == 0:
        return 0.0
    if shape.grid is None:
        return layer_norm(
            shape.outputs,
            shape.inputs,
            law,
            delta,
            method=method,
            density=density,
            part=part,
            threshold=threshold,
        ).value
    high, wide = shape.kernel
    logs, _ = part_moments(law, method, density, part, threshold)
    reshaped: NDArray[np.float64] = logs
    flat = iid_norm(shape.outputs * high, shape.inputs * wide, reshaped, delta).value
    frequencies = math.prod(shape.grid) // 2 + 2
    sums = sum_of_copies(logs, high * wide)
    per_frequency = iid_norm(shape.outputs, shape.inputs, sums, delta, union=frequencies).value
    return min(per_frequency, math.sqrt(high * wide) * flat)


@runtime_checkable
class NormRule(Protocol):
    """The call of `norm_bound`; another engine of the same call may stand in its place."""

    def __call__(
        self,
        shape: LayerShape,
        law: Law,
        delta: float,
        method: Method = "random",
        density: float = 0.0,
        part: str = "pruned",
        threshold: float | None = None,
    ) -> float: ...


def global_densities(network: Network, density: float) -> tuple[float, ...]:
    """Expected density of each layer where one magnitude threshold keeps `density` of them all."""
    total = sum(shape.total for shape in network.shapes)
    share = 1 - fraction("density", density, zero=True, one=True)

    def removed(t: float) -> list[float]:
        return [_share_below(law, t) for law in network.laws]

    def mean(t: float) -> float:
        return sum(
            s.total * r for s, r in zip(network.shapes, removed(t), strict=True)
        ) / total  # fmt: skip

    high = max(math.sqrt(law.variance) for law in network.laws)
    while mean(high) < share and high < 64 * max(math.sqrt(law.variance) for law in network.laws):
        high *= 2
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < share else (low, middle)
    return tuple(1 - r for r in removed(high if share else 0.0))


def global_threshold(network: Network, pruned: int, delta: float) -> float:
    """t⁺ for the k-th smallest |w| of all layers together.

    The least t with KL((k−1)/N ‖ μ(t)/N) ≥ ln(1/δ)/N and (k−1)/N < μ(t)/N, μ(t) = Σ N_i G_i(t).

    References:
        Hoeffding (1963), JASA 58, Theorem 1.
    """
    if pruned == 0:
        return 0.0
    total = sum(shape.total for shape in network.shapes)
    rate, share = -math.log(delta) / total, (pruned - 1) / total

    def enough(t: float) -> bool:
        mean = sum(
            shape.total * _share_below(law, t)
            for shape, law in zip(network.shapes, network.laws, strict=True)
        )
        level = min(mean / total, 1.0)
        return level > share and _divergence(share, level) >= rate

    high = max(math.sqrt(law.variance) for law in network.laws)
    largest = max(law.bound for law in network.laws)
    while not enough(high):
        if high >= largest:
            return largest
        high *= 2
        if high > 1e6 * math.sqrt(max(law.variance for law in network.laws)):
            return math.inf
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _share_below(law: Law, t: float) -> float:
    if law.kind == "uniform":
        return min(t / law.bound, 1.0)
    if law.kind == "moments" or law.parent is None:
        raise ValueError("magnitude pruning needs the whole law of |w|, got moments only.")
    share = math.erf(min(t, law.bound) / law.parent / math.sqrt(2))
    if law.kind == "truncated_normal":
        share /= math.erf(law.bound / law.parent / math.sqrt(2))
    return share


def _divergence(a: float, b: float) -> float:
    first = a * math.log(a / b) if a > 0 else 0.0
    if a >= 1:
        return first
    return math.inf if b >= 1 else first + (1 - a) * math.log((1 - a) / (1 - b))
