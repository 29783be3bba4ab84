"""The input and output vectors of one call of a layer, in blocks of bounded size."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from prunus.calibration.padding import Padding
from prunus.calibration.statistics import Vectors
from prunus.views import ConvView, TransposedConvView, batched
from prunus.weights import Weight

__all__ = ["block_of", "responses_of", "vectors_of"]

BLOCK_BYTES = 2**25  # of float64 vectors handled at a time


def vectors_of(
    weight: Weight,
    inputs: Tensor,
    padding: Padding | None = None,
    drawn: tuple[int, torch.Generator] | None = None,
) -> Iterator[Tensor]:
    """The input vectors of one call in blocks of bounded size.

    Args:
        weight: of the layer.
        inputs: what it multiplies.
        padding: positions to leave out.
        drawn: for convolutions, keep so many patches of every sample, drawn without replacement.
    """
    view, module = weight.view, weight.module
    if padding is not None:
        real = padding.real(weight.name, partial(view.channels, module, inputs))
        inputs = inputs if real is None else real
    if not isinstance(view, ConvView | TransposedConvView):
        yield from _blocks(view.vectors(module, inputs))
        return
    inputs = batched(module, inputs)
    sample_bytes = 8 * weight.source.taps * max(1, inputs[:1].numel())
    for piece in torch.split(inputs, max(1, BLOCK_BYTES // sample_bytes)):
        vectors = view.vectors(module, piece)
        if drawn is not None:
            vectors = _drawn_positions(vectors, len(piece), *drawn)
        yield from _blocks(vectors)


def responses_of(
    weight: Weight, outputs: Tensor, padding: Padding | None = None
) -> Iterator[Tensor]:
    """The output vectors of one call in blocks of bounded size; padding is left out."""
    view, module = weight.view, weight.module
    if padding is not None:
        real = padding.real(weight.name, partial(view.channels, module, outputs))
        outputs = outputs if real is None else real
    yield from _blocks(view.responses(module, outputs))


def block_of(name: str, values: Tensor, what: str = "received NaN or infinite inputs") -> Vectors:
    """A block of vectors in float64, with its sum.

    Raises:
        ValueError: a vector is NaN or infinite; the layer is named.
    """
    x = values.detach().to(torch.float64)
    total = x.sum(0)
    # The sum of finite numbers may overflow.
    if not bool(torch.isfinite(total).all()) and not bool(torch.isfinite(x).all()):
        raise ValueError(f"Layer {name!r} {what}. Check the data and the layers before.")
    return Vectors(values=x, total=total)


def _drawn_positions(
    vectors: Tensor, samples: int, limit: int, generator: torch.Generator
) -> Tensor:
    """`limit` patches of every sample, so that all samples weigh alike however they are batched."""
    positions = vectors.shape[0] // samples
    if positions <= limit:
        return vectors
    keys = torch.rand(samples, positions, dtype=torch.float64, generator=generator)
    chosen = keys.argsort(dim=1)[:, :limit].sort(dim=1).values
    first = positions * torch.arange(samples)[:, None]
    return vectors[(first + chosen).flatten().to(vectors.device)]


def _blocks(vectors: Tensor) -> Iterator[Tensor]:
    width = vectors.shape[1] * vectors.shape[2]
    yield from torch.split(vectors, max(256, BLOCK_BYTES // (8 * max(1, width))))
