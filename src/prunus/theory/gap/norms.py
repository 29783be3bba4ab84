"""Spectral norms that are never too small: dense matrices, implicit maps and convolutions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from prunus.check import as_float64, fraction, unknown, whole

__all__ = [
    "Geometry",
    "SafeNorm",
    "block_power",
    "circular_norm",
    "conv_norm",
    "frequencies",
    "gram_power",
    "lanczos",
    "reshape_norm",
    "spectral_norm",
    "tap_norm",
]

EPSILON = 2.0**-52
EXACT_SIDE = 2048  # smaller side up to which the Gram matrix is diagonalised
FREQUENCY_BYTES = 256 * 2**20
SECOND_GRID = 2**22  # entries over all frequencies up to which a second grid is tried
Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SafeNorm:
    """An upper bound on a spectral norm.

    Attributes:
        value: the bound.
        route: how it was found.
        delta: probability over the random start that it is too small; 0 for the deterministic
            routes.
    """

    value: float
    route: str
    delta: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a kernel (out, in / groups, height, width) meets images.

    Attributes:
        size: height and width of the input.
        stride: step per axis.
        padding: (before, after) per axis.
        dilation: distance of taps per axis.
        groups: channel groups.
        circular: the padding wraps around; else it is zeros.
    """

    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    circular: bool = False


def spectral_norm(
    matrix: Any,
    *,
    method: Literal["auto", "exact", "gram_power", "lanczos", "block_power", "cheap"] = "auto",
    delta: float = 1e-9,
    generator: Generator | None = None,
) -> SafeNorm:
    """An upper bound on ‖A‖ of a dense matrix.

    "exact" takes the largest eigenvalue of the smaller Gram matrix in float64, times
    1 + 64 max(n, m) 2⁻⁵²; "gram_power" is deterministic and at most 0.3 % high; "lanczos" and
    "block_power" draw a random start from `generator` and are too small with probability at most
    `delta`; "cheap" is min(‖A‖_F, √(‖A‖₁ ‖A‖_∞)); "auto" is exact up to a smaller side of 2048 and
    gram_power beyond.

    Raises:
        ValueError: NaN or infinite entries, an unknown method, a random method without generator.
    """
    a = as_float64("matrix", matrix, dims=2)
    a = a if a.shape[0] <= a.shape[1] else a.T
    size = float(a.abs().max()) if a.numel() else 0.0
    if size == 0:
        return SafeNorm(value=0.0, route="zero")
    if method == "auto":
        method = "exact" if a.shape[0] <= EXACT_SIDE else "gram_power"
    if method in ("lanczos", "block_power") and generator is None:
        raise ValueError(f"`method={method!r}` draws a random start: pass a `generator`.")
    a = a / size  # no overflow or underflow in the squares
    if method == "exact":
        inflate = 1 + 64 * a.shape[1] * EPSILON
        if a.shape[0] == 1:
            return SafeNorm(value=size * float(a.norm()) * inflate, route="exact")
        top = float(torch.linalg.eigvalsh(a @ a.T)[-1])
        return SafeNorm(value=size * math.sqrt(top) * inflate, route="exact")
    if method == "gram_power":
        return SafeNorm(value=size * gram_power(a), route="gram power")
    if method == "cheap":
        columns, rows = a.abs().sum(dim=0).max(), a.abs().sum(dim=1).max()
        value = min(float(a.norm()), float((columns * rows).sqrt()))
        inflate = 1 + 4 * a.numel() * EPSILON
        return SafeNorm(value=size * value * inflate, route="cheap")
    if method not in ("lanczos", "block_power"):
        known = ("auto", "exact", "gram_power", "lanczos", "block_power", "cheap")
        raise unknown("norm method", method, known)
    assert generator is not None
    search = lanczos if method == "lanczos" else block_power
    found = search(lambda x: a @ (a.T @ x), a.shape[0], delta=delta, generator=generator)
    return SafeNorm(value=size * found.value, route=found.route, delta=delta)


def gram_power(matrix: Float[Tensor, "rows columns"], squarings: int = 7) -> float:
    """(tr B^{2^k})^{1/2^{k+1}} ≥ ‖A‖ for B = A Aᵀ, by k squarings; at most r^{1/2^{k+1}} high."""
    gram = matrix @ matrix.T
    log, power = 0.0, 1.0  # B^power = exp(log) · gram
    for _ in range(squarings):
        norm = float(gram.norm())
        gram = gram / norm
        gram = gram @ gram
        log, power = 2 * (log + math.log(norm)), 2 * power
    trace = float(gram.diagonal().sum())
    inflate = 1 + 4 * max(matrix.shape) ** 2 * EPSILON
    return math.exp((log + math.log(trace)) / (2 * power)) * inflate


def lanczos(
    gram: Apply, size: int, *, steps: int = 120, delta: float = 1e-9, generator: Generator
) -> SafeNorm:
    """Bound on ‖A‖ from a random start and `steps` products with A Aᵀ (full orthogonalisation).

    λ_max ≤ θ / (1 − ε) with √ε = ln(1.648 √n / δ) / (2k − 1), θ the largest Ritz value.

    References:
        Kuczyński & Woźniakowski (1992), SIAM J. Matrix Anal. 13, Theorem 4.2 (constants quoted).
    """
    fraction("delta", delta)
    steps = min(whole("steps", steps, low=2), size)
    root = math.log(1.648 * math.sqrt(size) / delta) / (2 * steps - 1)
    if root >= 1:
        raise ValueError(
            f"`steps` = {steps} Lanczos steps prove nothing at delta = {delta}. Take more steps."
        )
    basis = torch.zeros(steps, size, dtype=torch.float64)
    start = torch.randn(size, dtype=torch.float64, generator=generator)
    basis[0] = start / start.norm()
    projected = torch.zeros(steps, steps, dtype=torch.float64)
    used = steps
    for k in range(steps):
        new = gram(basis[k])
        for _ in range(2):  # twice is enough for orthogonality to rounding
            weights = basis[: k + 1] @ new
            projected[: k + 1, k] += weights
            new = new - basis[: k + 1].T @ weights
        length = float(new.norm())
        if k + 1 == steps:
            break
        if length <= 1e-13 * float(projected.abs().max()):
            used = k + 1  # the space is invariant
            break
        basis[k + 1] = new / length
        projected[k + 1, k] = length
    square = projected[:used, :used]
    theta = float(torch.linalg.eigvalsh((square + square.T) / 2)[-1])
    value = math.sqrt(max(theta, 0) / (1 - root * root)) * (1 + 64 * size * EPSILON)
    return SafeNorm(value=value, route="lanczos", delta=delta)


def block_power(
    gram: Apply,
    size: int,
    *,
    steps: int = 60,
    starts: int = 16,
    delta: float = 1e-9,
    generator: Generator,
) -> SafeNorm:
    """max_j (‖(A Aᵀ)^k b_j‖ / s)^{1/2k} with r random unit starts, s = δ^{1/r} / (√(2/π) √n).

    A unit start is nearly orthogonal to the top vector, |⟨b, v⟩| ≤ s, with probability at most
    s √(2n/π) = δ^{1/r}; all r of them with at most δ. Otherwise ‖(AAᵀ)^k b‖ ≥ s ‖A‖^{2k}.
    """
    fraction("delta", delta)
    block = torch.randn(size, starts, dtype=torch.float64, generator=generator)
    block = block / block.norm(dim=0)
    log = torch.zeros(starts, dtype=torch.float64)
    for _ in range(steps):
        block = gram(block)
        lengths = block.norm(dim=0)
        if not bool((lengths > 0).any()):
            return SafeNorm(value=0.0, route="zero", delta=delta)
        log = log + lengths.log()
        block = block / lengths.clamp_min(1e-300)
    small = math.log(delta) / starts - 0.5 * math.log(2 / math.pi) - 0.5 * math.log(size)
    value = math.exp((float(log.max()) - small) / (2 * steps)) * (1 + 64 * size * EPSILON)
    return SafeNorm(value=value, route="block power", delta=delta)


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


def circular_norm(
    kernel: Float[Tensor, "out in height width"],
    grid: Sequence[int],
    stride: Sequence[int] = (1, 1),
) -> float:
    """Exact norm of a circular convolution on a grid: the largest over its frequencies.

    With a stride that divides the grid, the s² frequencies that alias stand side by side and are
    divided by s. Taps beyond the grid fold onto it.

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
    if 16 * outs * ins * high * wide > 8 * FREQUENCY_BYTES:
        raise ValueError(
            f"the frequencies of a {outs} × {ins} kernel on a {high} × {wide} grid need more than "
            f"{8 * FREQUENCY_BYTES >> 20} MiB. Use reshape_norm."
        )
    if down == right == 1:
        spectrum = torch.fft.rfft2(folded, s=(high, wide)).permute(2, 3, 0, 1)
        return _largest(spectrum)
    spectrum = torch.fft.fft2(folded, s=(high, wide)).permute(2, 3, 0, 1)
    spectrum = spectrum.reshape(down, high // down, right, wide // right, outs, ins)
    aliased = spectrum.permute(1, 3, 4, 0, 2, 5).flatten(3)
    return _largest(aliased) / math.sqrt(down * right)


def _grids(taps: Sequence[int], geometry: Geometry) -> list[tuple[int, int]]:
    """Grids on which the circular convolution contains the map: the smallest, and without wrap."""
    if geometry.circular:
        return [geometry.size]
    small, full = [], []
    for size, tap, (before, after) in zip(geometry.size, taps, geometry.padding, strict=True):
        outputs = size + before + after - tap + 1
        small.append(max(size + max(before, after), outputs))
        full.append(max(size + tap - 1, outputs))
    return [(small[0], small[1]), (full[0], full[1])]


def frequencies(taps: Sequence[int], geometry: Geometry) -> int:
    """Number of matrices, up to conjugation, that the frequencies of a stride-1 map have.

    On the smallest grid N₁ × N₂ on which a circular convolution contains it: ⌊N₁ N₂ / 2⌋ + 2.
    """
    spread = [d * (t - 1) + 1 for d, t in zip(geometry.dilation, taps, strict=True)]
    return math.prod(_grids(spread, geometry)[0]) // 2 + 2


def conv_norm(kernel: Any, geometry: Geometry) -> SafeNorm:
    """An upper bound on the norm of a convolution as a map of images; exact for circular padding.

    Zero padding is a restriction of a circular convolution on a larger grid, a stride a choice of
    outputs. The least over two valid grids (one where they are large), with the stride's aliasing,
    and of the two bounds by reshaping and by taps.

    Args:
        kernel: (out, in / groups, height, width).
        geometry: size, stride, padding, dilation and groups.
    """
    k = as_float64("kernel", kernel, dims=4)
    outs, ins, *taps = k.shape
    if not bool((k != 0).any()):
        return SafeNorm(value=0.0, route="zero")
    spread = [d * (t - 1) + 1 for d, t in zip(geometry.dilation, taps, strict=True)]
    if spread != taps:
        wide = k.new_zeros(outs, ins, *spread)
        wide[:, :, :: geometry.dilation[0], :: geometry.dilation[1]] = k
        k = wide
    stride = geometry.stride
    values: dict[str, float] = {}
    parts = k.reshape(geometry.groups, -1, *k.shape[1:])
    grids = _grids(spread, geometry)
    if math.prod(grids[0]) * outs * ins > SECOND_GRID:
        grids = grids[:1]
    for high, wide_ in grids:
        up = (-(-high // stride[0]) * stride[0], -(-wide_ // stride[1]) * stride[1])
        divides = up == (high, wide_)
        if stride != (1, 1) and (divides or not geometry.circular):
            values[f"frequencies {up[0]}×{up[1]}, stride"] = max(
                circular_norm(part, up, stride) for part in parts
            )
        else:
            values[f"frequencies {high}×{wide_}"] = max(
                circular_norm(part, (high, wide_)) for part in parts
            )
    values["reshape"] = max(reshape_norm(part) for part in parts)
    values["taps"] = max(tap_norm(part) for part in parts)
    route = min(values, key=values.__getitem__)
    return SafeNorm(value=values[route], route=route)


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
