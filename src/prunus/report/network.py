"""A small network drawn with its neurons and synapses, and masks drawn as pictures."""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["MAX_SYNAPSES", "chain", "draw_mask", "draw_network", "drawable"]

INK = (0x1F, 0x86, 0xC9)  # between the page's blues for light and dark
MAX_SYNAPSES = 2500  # beyond that a picture is a grey block


def drawable(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether weights of these shapes, in order, form a chain of layers small enough to draw."""
    matrices = all(len(shape) == 2 for shape in shapes)
    return (
        bool(shapes)
        and matrices
        and all(a[0] == b[1] for a, b in pairwise(shapes))
        and sum(a * b for a, b in shapes) <= MAX_SYNAPSES
    )


def draw_network(
    weights: Sequence[Float[Tensor, "_ _"]],
    masks: Sequence[Bool[Tensor, "_ _"]] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> str:
    """An SVG of a chain of fully connected layers, inputs on the left.

    A kept synapse is a line, blue for a positive and orange for a negative weight, the darker the
    larger it is within its layer. A neuron is filled where something reaches it and something
    leaves it, and hollow where its synapses are gone; an input counts by what leaves it, an output
    by what reaches it.

    Args:
        weights: (out, in) of each layer, in order.
        masks: True where a weight is kept; None draws all.
        names: of the layers, written between the columns.

    Returns:
        one `<svg>` element whose colours are classes of the page.

    Raises:
        ValueError: the shapes form no chain, or there are more synapses than can be told apart.
    """
    shapes = [tuple(w.shape) for w in weights]
    if not drawable(shapes):
        raise ValueError(
            f"Only a chain of layers with at most {MAX_SYNAPSES} weights in all is drawn, got "
            f"shapes {', '.join(map(str, shapes)) or 'none'}."
        )
    kept = [torch.ones(w.shape, dtype=torch.bool) if masks is None else masks[i].cpu()
            for i, w in enumerate(weights)]  # fmt: skip
    widths = [shapes[0][1], *(shape[0] for shape in shapes)]
    gap, tall = 170.0, 300.0
    columns = [[_height(i, n, tall) for i in range(n)] for n in widths]
    lines = []
    for i, (weight, mask) in enumerate(zip(weights, kept, strict=True)):
        w = weight.detach().to("cpu", torch.float64)
        largest = float(w.abs().max()) or 1.0
        for out, into in mask.nonzero().tolist():
            value = float(w[out, into])
            kind = "plus" if value >= 0 else "minus"
            strength = 0.12 + 0.78 * abs(value) / largest
            lines.append(
                f'<line class="{kind}" x1="{20 + gap * i:.0f}" y1="{columns[i][into]:.1f}" '
                f'x2="{20 + gap * (i + 1):.0f}" y2="{columns[i + 1][out]:.1f}" '
                f'stroke-opacity="{strength:.2f}"/>'
            )
    dots = []
    for i, heights in enumerate(columns):
        arrives = kept[i - 1].any(1) if i > 0 else torch.ones(widths[0], dtype=torch.bool)
        leaves = kept[i].any(0) if i < len(kept) else torch.ones(widths[-1], dtype=torch.bool)
        radius = min(5.0, 0.42 * tall / max(len(heights), 2))
        for j, y in enumerate(heights):
            alive = bool(arrives[j]) and bool(leaves[j])
            dots.append(
                f'<circle class="{"unit" if alive else "empty"}" cx="{20 + gap * i:.0f}" '
                f'cy="{y:.1f}" r="{radius:.1f}"/>'
            )
    words = [
        f'<text x="{20 + gap * i:.0f}" y="326" text-anchor="{_anchor(i, len(widths))}">{n}</text>'
        for i, n in enumerate(widths)
    ]
    words += [
        f'<text x="{20 + gap * (i + 0.5):.0f}" y="326" text-anchor="middle">{_escape(name)}</text>'
        for i, name in enumerate(names or ())
    ]
    living = sum('class="unit"' in dot for dot in dots)
    label = f"{len(lines)} synapses and {living} of {sum(widths)} neurons"
    return (
        f'<svg viewBox="0 0 {40 + gap * len(weights):.0f} 334" role="img" aria-label="{label}" '
        f'font-size="13" stroke-width="1"><title>{label}</title>'
        f"{''.join(lines)}{''.join(dots)}{''.join(words)}</svg>"
    )


def draw_mask(mask: Bool[Tensor, "out in"], *, cells: int = 96) -> str:
    """An SVG of a mask: one cell per weight, or, where it is larger, the density of each block.

    Args:
        mask: True where a weight is kept; outputs are rows.
        cells: most cells along the longer side.
    """
    shrink = min(1.0, cells / max(mask.shape))
    rows, columns = (max(1, round(n * shrink)) for n in mask.shape)
    share = _blocks(_blocks(mask.cpu().double(), rows).T, columns).T
    opacity = (255 * share).round().to(torch.uint8).numpy()
    kept = int(mask.sum())
    label = f"{kept} of {mask.numel()} weights kept"
    return (
        f'<svg viewBox="0 0 {columns} {rows}" role="img" aria-label="{label}" '
        f'preserveAspectRatio="xMinYMin meet">'
        f'<title>{label}</title><rect class="void" width="{columns}" height="{rows}"/>'
        f'<image width="{columns}" height="{rows}" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{base64.b64encode(_png(opacity)).decode()}"/></svg>'
    )


def _png(opacity: np.ndarray) -> bytes:
    """An RGBA picture in one colour whose opacity is given, in the simplest form PNG allows."""
    height, width = opacity.shape
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = INK
    pixels[..., 3] = opacity
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0: bytes as they are

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def chain(layers: Mapping[str, Any]) -> tuple[list[str], list[Tensor], list[Tensor]] | None:
    """Names, weights and masks of layer results that form a drawable chain, else None."""
    names = list(layers)
    weights = [layers[name].weight for name in names]
    masks = [layers[name].mask for name in names]
    if not drawable([tuple(w.shape) for w in weights]):
        return None
    return names, weights, masks


def _blocks(values: Tensor, count: int) -> Tensor:
    """Means of `count` runs of rows whose lengths differ by at most one."""
    edges = [len(values) * i // count for i in range(count + 1)]
    return torch.stack([values[a:b].mean(0) for a, b in pairwise(edges)])


def _height(index: int, count: int, tall: float) -> float:
    return 8 + (tall - 8) * (0.5 if count == 1 else index / (count - 1))


def _anchor(index: int, count: int) -> str:
    return "start" if index == 0 else "end" if index == count - 1 else "middle"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
