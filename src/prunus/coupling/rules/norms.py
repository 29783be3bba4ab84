"""Normalisation: per channel it leaves classes apart, over channels it is not exact."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.coupling.calls import Call, Rule, Trace, spread
from prunus.coupling.labels import DATA, FIRST, distinct
from prunus.coupling.rules.elementwise import after_constant_map, named

__all__ = ["RULES"]


def channel_norm(trace: Trace, call: Call) -> Tensor:
    """Batch and instance norm: each channel has its own statistics and parameters."""
    inputs = call.arguments["input"]
    labels = trace.read(inputs)
    if call.arguments.get("training", False):
        rest = [a for a in range(labels.ndim) if a != 1]
        labels = trace.labels.merge(labels, rest, call.name)
    classes = trace.labels.column(labels, 1, inputs.shape[1], call.name)
    _each_channel(trace, call, ("weight", "bias", "running_mean", "running_var"), classes)
    return after_constant_map(trace, inputs, spread(classes, 1, inputs.ndim), call.name)


def _each_channel(trace: Trace, call: Call, keys: Sequence[str], classes: Tensor) -> None:
    """Say that these arguments, as far as they are parameters, have an entry for every channel."""
    is_class = classes >= FIRST
    every = bool(is_class.all())
    own = classes if every else classes[is_class]
    for key in keys:
        parameter = call.arguments.get(key)
        atoms = None if parameter is None else trace.atoms(parameter)
        if parameter is None or atoms is None:
            continue
        atoms = atoms.expand(len(classes))
        trace.labels.meet_atoms(atoms if every else atoms[is_class], own)
        trace.norm(parameter, classes)


def layer_norm(trace: Trace, call: Call) -> Tensor:
    """Layer and RMS norm over the last axes: not exact where several classes share statistics."""
    inputs = call.arguments["input"]
    labels = trace.read(inputs)
    window = tuple(call.arguments["normalized_shape"])
    lead = labels.shape[: labels.ndim - len(window)]
    rows = trace.labels.find(labels.expand(*lead, *window)).reshape(-1, math.prod(window))
    if call.arguments.get("weight") is not None:
        rows = _beside_classes(trace, rows)
    result = _shared_statistics(trace, rows).reshape(*lead, *window)
    for key in ("weight", "bias"):
        parameter = call.arguments.get(key)
        if parameter is not None:
            own = trace.atoms(parameter)
            own = trace.read(parameter) if own is None else own
            result = trace.labels.meet(result, own, call.name)
            trace.norm(parameter, labels)
    return result


def _beside_classes(trace: Trace, rows: Tensor) -> Tensor:
    """Entries of parameters (a token of its own) as the classes that other rows have there.

    The norm's weight acts on a channel at all positions, so that it is one class at all of them.
    """
    above = rows.amax(0, keepdim=True).expand_as(rows)
    entries = (rows < 0) & (above >= FIRST)
    trace.labels.meet_atoms(rows[entries], above[entries])
    return torch.where(entries, above, rows)


def group_norm(trace: Trace, call: Call) -> Tensor:
    """Group norm: the channels at the same place in each norm group form one class."""
    inputs, groups = call.arguments["input"], call.arguments["group"]
    classes = trace.labels.column(trace.read(inputs), 1, inputs.shape[1], call.name)
    if 1 < groups < len(classes):
        shared = classes.reshape(groups, -1)
        for row in shared[1:]:
            trace.labels.meet(shared[0], row, call.name)
    _each_channel(trace, call, ("weight", "bias"), classes)
    result = _shared_statistics(trace, trace.labels.find(classes).reshape(groups, -1))
    return spread(result.flatten(), 1, inputs.ndim)


def _shared_statistics(trace: Trace, rows: Tensor) -> Tensor:
    """Labels after a norm over each row; constants beside a class become data."""
    trace.labels.shared.append(distinct(rows, dim=0))
    return torch.where(rows >= FIRST, rows, DATA)


RULES: dict[str, Rule] = {
    **named("native_batch_norm cudnn_batch_norm miopen_batch_norm", channel_norm),
    **named("_native_batch_norm_legit _native_batch_norm_legit_no_training", channel_norm),
    **named("_batch_norm_no_update _batch_norm_with_update", channel_norm),
    **named("native_layer_norm _fused_rms_norm", layer_norm),
    **named("native_group_norm", group_norm),
}
