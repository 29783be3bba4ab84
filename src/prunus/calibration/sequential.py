"""Statistics of inputs that already pruned predecessors give, beside the dense model's inputs."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import Batches, call, parts, to_device
from prunus.calibration.collect import vectors_of, watched
from prunus.calibration.padding import padding_of, streams_of
from prunus.check import finite
from prunus.layer import Layer, squeeze_groups
from prunus.modes import evaluating
from prunus.weights import Weight, weight_at

__all__ = ["sequential_layers"]


def sequential_layers(
    dense: nn.Module, pruned: nn.Module, names: tuple[str, ...], batches: Batches, *, device: Any
) -> dict[str, Layer]:
    """The dense layers with statistics of both models' inputs, from one pass over the data.

    `gram` and `mean` are those of the pruned model's inputs x, `cross` is E[x_dense xᵀ],
    `dense_gram` and `dense_mean` are the dense model's. Weights are the dense model's.

    Args:
        dense: the model before pruning.
        pruned: the same model with the layers before `names` pruned.
        names: layers whose inputs are collected.
        batches: the data; read once.
        device: where both models live.

    Raises:
        ValueError: a layer never ran on the data, or its inputs are NaN or infinite (it is named).
    """
    weights = {name: weight_at(dense, name) for name in names}
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    counts = dict.fromkeys(names, 0)
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    state: dict[str, Any] = {"mask": None}

    def remember(weight: Weight, inputs: Tensor) -> None:
        kept[weight.name].append(inputs)

    def combine(weight: Weight, inputs: Tensor) -> None:
        name = weight.name
        before = kept[name].pop(0)
        pairs = zip(
            vectors_of(weight, before, state["mask"]),
            vectors_of(weight, inputs, state["mask"]),
            strict=True,
        )
        for old, new in pairs:
            if not bool(torch.isfinite(new.sum()) & torch.isfinite(old.sum())):
                finite(f"inputs of {name}", old, "Check the data and the layers before.")
                finite(f"inputs of {name}", new, "Check the data and the pruned layers before.")
            d, p = (v.to(torch.float64).transpose(0, 1) for v in (old, new))
            counts[name] += d.shape[1]
            _add(sums[name], "gram", p.transpose(1, 2) @ p)
            _add(sums[name], "cross", d.transpose(1, 2) @ p)
            _add(sums[name], "dense_gram", d.transpose(1, 2) @ d)
            _add(sums[name], "mean", p.sum(1))
            _add(sums[name], "dense_mean", d.sum(1))

    streams = streams_of(dense, to_device(batches.peek(), device))
    with ExitStack() as stack:
        stack.enter_context(evaluating(dense))
        stack.enter_context(evaluating(pruned))
        stack.enter_context(torch.no_grad())
        stack.enter_context(watched(weights.values(), remember))
        stack.enter_context(watched([weight_at(pruned, name) for name in names], combine))
        for batch in batches:
            for part in parts(batch):
                on_device = to_device(part, device)
                state["mask"] = padding_of(on_device, streams)
                call(dense, on_device)
                call(pruned, on_device)
    found = {}
    for name in names:
        if not counts[name]:
            raise ValueError(f"Layer {name!r} never ran on the data. Check the model's forward.")
        layer = weights[name].layer()
        means: dict[str, Any] = {
            key: squeeze_groups(value / counts[name], layer.groups)
            for key, value in sums[name].items()
        }
        found[name] = replace(layer, samples=counts[name], **means)
    return found


def _add(sums: dict[str, Tensor], key: str, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value
