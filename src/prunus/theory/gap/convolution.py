"""Norms of convolutions as maps of images, for every padding, stride, dilation and grouping."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import as_float64
from prunus.theory.gap.norms import EPSILON, SafeNorm, spectral_norm

__all__ = [
    "Geometry",
    "circular_norm",
    "conv_norm",
    "copies",
    "frequencies",
    "reshape_norm",
    "tap_norm",
]

FREQUENCY_BYTES = 2**31  # of all frequencies together; beyond them kernels alone bound the norm
SECOND_GRID = 2**22  # entries over all frequencies up to which a second grid is tried

Padding = Literal["zeros", "circular", "reflect", "replicate"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a kernel (out, in / groups, height, width) meets images.

    Attributes:
        size: height and width of the input.
        stride: step per axis.
        padding: (before, after) per axis.
        dilation: distance of taps per axis.
        groups: channel groups.
        mode: what the padding holds, as `padding_mode` of PyTorch's convolutions.
    """

    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    mode: Padding = "zeros"

    def spread(self, taps: Sequence[int]) -> tuple[int, int]:
        """Pixels that a kernel of so many taps spans, per axis."""
        high, wide = (d * (t - 1) + 1 for d, t in zip(self.dilation, taps, strict=True))
        return high, wide


def copies(geometry: Geometry, taps: Sequence[int]) -> tuple[Geometry, float]:
    """A map that reads no pixel twice, and the factor on its norm that covers the padded one.

    Padding by pixels of the image is P with PᵀP diagonal: how often each pixel is read. For
    "reflect" and "replicate" the convolution without padding, of the padded image, times
    ‖P‖ = √(most readings). For "circular", outputs repeat with the period of the image: the
    circular convolution of one period, times the root of how often its outputs are taken; a
    stride s on a period N takes outputs of one class mod gcd(s, N).
    """
    if geometry.mode == "zeros":
        return geometry, 1.0
    most, size, stride = 1, [], []
    spread = geometry.spread(taps)
    for n, span, step, pad in zip(
        geometry.size, spread, geometry.stride, geometry.padding, strict=True
    ):
        before, after = pad
        if geometry.mode == "circular":
            read = (np.arange(0, n + before + after - span + 1, step) - before) % n
            size.append(n)
            stride.append(math.gcd(step, n))
        else:
            read = np.arange(-before, n + after)
            if geometry.mode == "replicate":
                read = read.clip(0, n - 1)
            elif n > 1:
                read = (n - 1) - np.abs((n - 1) - read % (2 * n - 2))
            else:
                read = np.zeros_like(read)
            size.append(n + before + after)
            stride.append(step)
        most *= int(np.bincount(read).max(initial=1))
    mode: Padding = "circular" if geometry.mode == "circular" else "zeros"
    plain = replace(
        geometry,
        size=(size[0], size[1]),
        stride=(stride[0], stride[1]),
        padding=((0, 0), (0, 0)),
        mode=mode,
    )
    return plain, math.sqrt(most)


def conv_norm(kernel: Any, geometry: Geometry) -> SafeNorm:
    """An upper bound on the norm of a convolution as a map of images.

    Zero padding is a restriction of a circular convolution on a larger grid, a stride a choice of
    outputs, any other padding a zero-padded or circular map times √`copies`. The least over two
    valid grids (one where they are large), with the stride's aliasing, and of the two bounds by
    reshaping and by taps. Exact for circular padding where every output is taken equally often:
    "same" padding with a stride that divides the image, among others.

    Args:
        kernel: (out, in / groups, height, width).
        geometry: size, stride, padding, dilation and groups.
    """
    k = as_float64("kernel", kernel, dims=4)
    if not bool((k != 0).any()):
        return SafeNorm(value=0.0, route="zero")
    outs, ins, *taps = k.shape
    plain, factor = copies(geometry, taps)
    spread = geometry.spread(taps)
    parts = k.reshape(geometry.groups, -1, *k.shape[1:])
    values = {
        "reshape": max(reshape_norm(part) for part in parts),
        "taps": max(tap_norm(part) for part in parts),
    }
    if spread != tuple(taps):
        wide = k.new_zeros(outs, ins, *spread)
        wide[:, :, :: geometry.dilation[0], :: geometry.dilation[1]] = k
        parts = wide.reshape(geometry.groups, -1, *wide.shape[1:])
    stride = plain.stride
    grids = _grids(spread, plain)
    if math.prod(grids[0]) * outs * ins > SECOND_GRID:
        grids = grids[:1]
    for grid in grids:
        up = (-(-grid[0] // stride[0]) * stride[0], -(-grid[1] // stride[1]) * stride[1])
        if _frequency_bytes(parts[0], up) > FREQUENCY_BYTES:
            continue
        found = max(circular_norm(part, up, stride) for part in parts)
        values[f"frequencies {up[0]}×{up[1]}" + (", stride" if stride != (1, 1) else "")] = found
    route = min(values, key=values.__getitem__)
    value = factor * values[route] * (1 if factor == 1 else 1 + 4 * EPSILON)
    return SafeNorm(value=value, route=route if factor == 1 else f"{route}, √copies")


def circular_norm(
    kernel: Float[Tensor, "out in height width"],
    grid: Sequence[int],
    stride: Sequence[int] = (1, 1),
) -> float:
    """Exact norm of a circular convolution on a grid: the largest over its frequencies.

    With a stride that divides the grid, the s² frequencies that alias stand side by side and are
    divided by s. Taps beyond the grid fold onto it.

    Raises:
        ValueError: the stride does not divide the grid, or the frequencies need too much memory.

    References:
        Sedghi, Gupta & Long (2019), The singular values of convolutional layers.
    """
    outs, ins = kernel.shape[:2]
    folded = kernel
    for axis in (0, 1):
        pieces = torch.split(folded, grid[axis], dim=2 + axis)
        if len(pieces) > 1:
            total = pieces[0].clone()
            for piece in pieces[1:]:
                total.narrow(2 + axis, 0, piece.shape[2 + axis]).add_(piece)
            folded = total
    (high, wide), (down, right) = grid, stride
    if high % down or wide % right:
        raise ValueError(f"a stride of {tuple(stride)} must divide the grid {tuple(grid)}.")
    if _frequency_bytes(kernel, grid) > FREQUENCY_BYTES:
        raise ValueError(
            f"the frequencies of a {outs} × {ins} kernel on a {high} × {wide} grid need more than "
            f"{FREQUENCY_BYTES >> 20} MiB. Use reshape_norm."
        )
    if down == right == 1:
        spectrum = torch.fft.rfft2(folded, s=(high, wide)).permute(2, 3, 0, 1)
        return _largest(spectrum)
    spectrum = torch.fft.fft2(folded, s=(high, wide)).permute(2, 3, 0, 1)
    spectrum = spectrum.reshape(down, high // down, right, wide // right, outs, ins)
    aliased = spectrum.permute(1, 3, 4, 0, 2, 5).flatten(3)
    return _largest(aliased) / math.sqrt(down * right)


def _frequency_bytes(kernel: Tensor, grid: Sequence[int]) -> int:
    return 16 * kernel.shape[0] * kernel.shape[1] * math.prod(grid)


def _largest(matrices: Tensor) -> float:
    """Largest spectral norm of a batch of complex matrices, outward."""
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mH
    inflate = 1 + 64 * matrices.shape[-1] * EPSILON
    if matrices.shape[-2] == 1:
        return float(matrices.norm(dim=-1).max()) * inflate
    # the trace of a power bounds the top eigenvalue: only frequencies that can win are diagonalised
    grams = matrices @ matrices.mH
    flat = grams.flatten(0, -3)
    upper = (flat @ flat).abs().square().sum(dim=(-2, -1)).pow(0.25)  # (tr B⁴)^{1/4}
    order = upper.argsort(descending=True)
    best, chunk = 0.0, 16
    for first in range(0, len(order), chunk):
        some = order[first : first + chunk]
        if best >= float(upper[some[0]]) * (1 + 1e-12):
            break
        best = max(best, float(torch.linalg.eigvalsh(flat[some])[..., -1].max()))
    return math.sqrt(best) * inflate


def _grids(spread: Sequence[int], geometry: Geometry) -> list[tuple[int, int]]:
    """Grids on which the circular convolution contains the map: the smallest, and without wrap."""
    if geometry.mode == "circular":
        return [geometry.size]
    small, full = [], []
    for size, tap, (before, after) in zip(geometry.size, spread, geometry.padding, strict=True):
        outputs = size + before + after - tap + 1
        small.append(max(size + max(before, after), outputs))
        full.append(max(size + tap - 1, outputs))
    return [(small[0], small[1]), (full[0], full[1])]


def frequencies(taps: Sequence[int], geometry: Geometry) -> int:
    """Number of matrices, up to conjugation, that the frequencies of a stride-1 map have.

    On the smallest grid N₁ × N₂ on which a circular convolution contains it: ⌊N₁ N₂ / 2⌋ + 2.
    """
    plain, _ = copies(geometry, taps)
    return math.prod(_grids(geometry.spread(taps), plain)[0]) // 2 + 2


def reshape_norm(kernel: Float[Tensor, "out in height width"]) -> float:
    """√(kh·kw) times the least norm of the four reshapes of a kernel.

    References:
        Singla & Feizi (2021), Fantastic four: differentiable bounds on singular values of
        convolution layers.
    """
    outs, ins, high, wide = kernel.shape
    shapes = (
        kernel.reshape(outs, -1),
        kernel.transpose(0, 1).reshape(ins, -1),
        kernel.permute(0, 2, 1, 3).reshape(outs * high, -1),
        kernel.permute(0, 3, 1, 2).reshape(outs * wide, -1),
    )
    return math.sqrt(high * wide) * min(spectral_norm(shape).value for shape in shapes)


def tap_norm(kernel: Float[Tensor, "out in height width"]) -> float:
    """Σ over taps of the norm of the channel matrix at that tap."""
    taps = kernel.flatten(2).permute(2, 0, 1)
    return sum(spectral_norm(tap).value for tap in taps)
