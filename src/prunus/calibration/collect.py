"""One streaming pass over the data that collects what is asked; hooks are always removed."""

import warnings
from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunus.calibration.batches import (
    Batches,
    Fingerprint,
    call,
    parts,
    size_of,
    to_device,
)
from prunus.calibration.classes import columns
from prunus.calibration.gather import Gatherer, gathering
from prunus.calibration.gradient import BACKWARD, Backward
from prunus.calibration.hessian import hessian_gradients
from prunus.calibration.layout import layout_of
from prunus.calibration.of_weights import flows
from prunus.calibration.padding import padding_of
from prunus.calibration.statistics import Matrix, Signal, Source, Statistic
from prunus.calibration.sums import Sums
from prunus.coupling import Group
from prunus.host import available_memory
from prunus.layer import Layer
from prunus.modes import evaluating
from prunus.rng import generator_for
from prunus.weights import Weight

__all__ = ["Collected", "collect", "guard_memory"]

GRAM_BYTES = 2**31  # sums of one layer above this are refused unless the caller allows more
SIGNS: dict[Signal, str] = {  # of which stream the random signs are
    "output": "signs of the outputs",
    "softmax": "signs of the softmax",
    "square": "signs of the squares",
}


class Collected:
    """What one pass over the data gives.

    Attributes:
        layers: {name: sums} of the layers that ran.
        groups: {name: sums} of the groups of channel classes.
        fingerprint: of the data.
        samples: number of samples seen.
        blind: names of layers whose modules do not show what they multiply.
    """

    def __init__(self, layers: dict[str, Sums]) -> None:
        self.layers = layers
        self.groups: dict[str, Sums] = {}
        self.fingerprint = Fingerprint()
        self.samples = 0
        self.blind: frozenset[str] = frozenset()


def collect(
    model: nn.Module,
    weights: Mapping[str, Weight],
    layers: Mapping[str, Layer],
    statistics: Mapping[str, Statistic],
    batches: Batches,
    *,
    groups: tuple[Group, ...] = (),
    max_samples: int | None = None,
    max_positions: int | None = None,
    seed: int = 0,
    loss: Any = None,
    device: torch.device,
    advance: Any = None,
) -> Collected:
    """Sums over the inputs, outputs and gradients of the layers that ran.

    Raises:
        ValueError: the data are empty, or do not fit the model, or an input is NaN or infinite
            (the layer is named).
    """
    drawn: dict[str, tuple[int, Generator]] = {}
    if max_positions is not None:
        drawn = {name: (max_positions, generator_for(seed, name)) for name in weights}
    gatherer = Gatherer(layers, statistics, drawn, shared=True)
    backward = Backward(
        weights,
        layers,
        {key: s for key, s in statistics.items() if s.reads.source in BACKWARD},
        {signal: generator_for(seed, stream) for signal, stream in SIGNS.items()},
        {group.name: {n: columns(group, layers[n]) for n in group.consumers} for group in groups},
        loss,
    )
    whole: dict[Source, list[Statistic]] = {
        source: gatherer.reading(source) for source in ("hessian", "weights")
    }
    found = Collected(gatherer.sums)
    found.groups = {group.name: Sums(consumers=group.consumers) for group in groups}
    used: list[Any] = []
    layout = layout_of(model, to_device(next(parts(batches.peek())), device))
    numbers = count()
    with evaluating(model), gathering(weights, gatherer):
        for batch in batches:
            for part in parts(batch):
                if max_samples is not None:
                    room = max_samples - found.samples
                    if room <= 0:
                        break
                    part = next(parts(part, room))
                found.fingerprint.add(part)
                found.samples += size_of(part) or 1
                if whole["weights"] or max_samples is not None:
                    used = [*used, part] if max_samples is not None else used or [part]
                on_device = to_device(part, device)
                gatherer.padding = padding_of(on_device, layout)
                if backward.statistics:
                    sums = backward.sums(model, on_device, next(numbers), gatherer.padding)
                    _put(found, statistics, *sums)
                else:
                    with torch.no_grad():
                        call(model, on_device, next(numbers))
            if advance is not None:
                advance(1)
            if max_samples is not None and found.samples >= max_samples:
                break
    found.groups = {name: sums for name, sums in found.groups.items() if sums.totals}
    gatherer.close()
    found.blind = frozenset(gatherer.blind)
    ran = {name: weight for name, weight in weights.items() if name in found.layers}
    if whole["hessian"]:
        again = batches if max_samples is None else Batches(used)
        gradients = hessian_gradients(model, ran, again, loss=loss, device=device)
        matrices = {name: Matrix(weight.matrix(gradients[name])) for name, weight in ran.items()}
        _put_matrices(found, layers, whole["hessian"], matrices)
    if whole["weights"]:
        _put_matrices(found, layers, whole["weights"], flows(model, ran, used[0]))
    return found


def _put(
    found: Collected,
    statistics: Mapping[str, Statistic],
    layers: Mapping[str, Mapping[str, Tensor]],
    groups: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Add the sums of one batch."""
    for name, own in layers.items():
        if name in found.layers:  # it has run
            for key, value in own.items():
                found.layers[name].put(statistics[key], value)
    for name, own in groups.items():
        for key, value in own.items():
            found.groups[name].put(statistics[key], value)


def _put_matrices(
    found: Collected,
    layers: Mapping[str, Layer],
    statistics: list[Statistic],
    matrices: Mapping[str, Matrix],
) -> None:
    """Enter one number per weight."""
    for name, matrix in matrices.items():
        for s in statistics:
            found.layers[name].put(s, s.add(None, matrix, layers[name]))


def guard_memory(
    layers: Mapping[str, Layer],
    statistics: Mapping[str, Statistic],
    groups: tuple[Group, ...] = (),
    device: torch.device | None = None,
) -> None:
    """Refuse sums above the memory limit before any data are read.

    Raises:
        MemoryError: names the statistic, the layer (or group), what it needs and the limit.

    Warns:
        RuntimeWarning: all sums together may take more memory than there is.
    """
    together = 0
    sizes = [
        (f"layer {name!r}", "layer", *layer.weight.shape, layer.groups)
        for name, layer in layers.items()
    ]
    sizes += [(f"group {group.name!r}", "classes", group.size, group.size, 1) for group in groups]
    for s in statistics.values():
        for shown, kind, out, wide, blocks in sizes:
            if (kind == "classes") != (s.reads.source == "classes"):
                continue
            needed = 8 * s.numbers(out, wide, blocks)
            together += needed
            if needed > GRAM_BYTES:
                raise MemoryError(
                    f"The statistic {s.name!r} of {shown} needs {needed / 2**30:.3g} GiB, more "
                    f"than the limit of {GRAM_BYTES / 2**30:.3g} GiB. Exclude the layer, use a "
                    f"recipe that needs less (`wanda` takes the diagonal of the Gram matrix "
                    f"only), or raise prunus.calibration.collect.GRAM_BYTES."
                )
    left = available_memory(device)
    if left is not None and together > left:
        warnings.warn(
            f"The statistics of {len(sizes)} layers may take {together / 2**30:.3g} GiB, and "
            f"{left / 2**30:.3g} GiB are available. Prune with blocks='auto', which holds "
            f"those of one block at a time, or select fewer layers.",
            RuntimeWarning,
            stacklevel=4,
        )
