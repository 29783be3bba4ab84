"""Statistics of inputs that already pruned predecessors give, beside the dense model's inputs."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from prunus.calibration.batches import Batches, call, first_of, parts, to_device
from prunus.calibration.gather import Gatherer, gathering_both
from prunus.calibration.padding import padding_of, streams_of
from prunus.calibration.statistics import Statistic, resolved
from prunus.layer import Layer
from prunus.modes import evaluating
from prunus.weights import weight_at

__all__ = ["TOWARDS_DENSE", "carried", "sequential_layers"]

# What least squares towards the dense outputs reads.
TOWARDS_DENSE = ("gram", "mean", "cross", "dense_gram", "dense_mean")


def sequential_layers(
    dense: nn.Module,
    pruned: nn.Module,
    names: Iterable[str],
    batches: Batches,
    *,
    statistics: Iterable[str | Statistic] = (),
    before: Mapping[str, Layer] | None = None,
    device: torch.device,
) -> dict[str, Layer]:
    """The dense layers with statistics of both models' inputs, from one pass over the data.

    Beside `statistics`, those of `TOWARDS_DENSE` are collected: `gram` and `mean` are of the pruned
    model's inputs x, `cross` is E[x_dense xᵀ], `dense_gram` and `dense_mean` are the dense model's.
    Weights are the dense model's.

    Args:
        dense: the model before pruning.
        pruned: the same model with the layers before `names` pruned.
        names: layers whose inputs are collected.
        batches: the data; read once.
        statistics: what else is wanted. Those that look at the whole network, such as gradients,
            are taken from `before`.
        before: the layers with the dense model's statistics.
        device: where both models live.

    Raises:
        ValueError: a layer never ran on the data, or its inputs are NaN or infinite (it is named).
    """
    names = tuple(names)
    every = resolved([*statistics, *TOWARDS_DENSE])
    ours, theirs = ({name: weight_at(model, name) for name in names} for model in (dense, pruned))
    bare = {name: weight.layer() for name, weight in ours.items()}
    gatherer = Gatherer(bare, {key: s for key, s in every.items() if s.reads.sequential})
    streams = streams_of(dense, to_device(first_of(batches.peek(), 2), device))
    with ExitStack() as stack:
        stack.enter_context(evaluating(dense))
        stack.enter_context(evaluating(pruned))
        stack.enter_context(torch.no_grad())
        stack.enter_context(gathering_both(ours, theirs, gatherer))
        for batch in batches:
            for part in parts(batch):
                on_device = to_device(part, device)
                gatherer.padding = padding_of(on_device, streams)
                call(dense, on_device)
                call(pruned, to_device(part, device))
    return {name: carried(bare[name], gatherer, every, (before or {}).get(name)) for name in names}


def carried(
    bare: Layer, gatherer: Gatherer, statistics: Mapping[str, Statistic], before: Layer | None
) -> Layer:
    """A layer with what was gathered, and what of `statistics` stays the dense model's.

    Of the dense model's other statistics none is taken over: they are of other inputs.

    Raises:
        ValueError: the layer never ran on the data.
    """
    sums = gatherer.sums.get(bare.name)
    if sums is None or not any(sums.counts.values()):
        raise ValueError(f"Layer {bare.name!r} never ran on the data. Check the model's forward.")
    found = sums.layer(replace(bare, statistics={}), statistics, 0)
    if before is None:
        return found
    stay = {
        key: before.statistics[key]
        for key, s in statistics.items()
        if not s.reads.sequential and key in before.statistics
    }
    return replace(
        found,
        producer=before.producer,
        classes=before.classes,
        statistics={**stay, **found.statistics},
    )
