"""Operations that only move values: run on the labels themselves (exact in float64)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.coupling.calls import Call, Refused, Rule, Trace, spread
from prunus.coupling.labels import FIRST, WRITTEN, narrowed, written_at
from prunus.coupling.rules.elementwise import named
from prunus.coupling.shadow import carries
from prunus.shapes import reads_values

__all__ = ["RULES", "full"]


def full(trace: Trace, tensor: Tensor) -> Tensor:
    """Labels of a tensor, entry by entry."""
    return trace.read(tensor).expand(tensor.shape)


def movement(trace: Trace, call: Call) -> tuple[Tensor, ...]:
    """The operation itself, on labels in place of values."""

    def as_labels(value: Any) -> Any:
        if isinstance(value, Tensor):
            if carries(value):
                return full(trace, value).to(torch.float64)
            reads_values(value)
            return value.cpu()
        if isinstance(value, list | tuple):
            return [as_labels(part) for part in value]
        return value

    arguments = {name: as_labels(value) for name, value in call.arguments.items()}
    arguments = {name: value for name, value in arguments.items() if name not in PLACED}
    operation: Any = call.operation
    result = operation(**arguments)
    parts = result if isinstance(result, list | tuple) else (result,)
    return tuple(narrowed(part).to(torch.int64) for part in parts)


PLACED = ("device", "memory_format", "dtype", "layout", "pin_memory")


def concatenate(trace: Trace, call: Call) -> Tensor:
    """Tensors one after another along an axis; elsewhere labels stay as small as they are."""
    tensors: Sequence[Tensor] = call.arguments["tensors"]
    axis = call.arguments.get("dim", 0) % call.out.ndim
    parts = [
        (trace.read(tensor), tensor) for tensor in tensors if tensor.ndim > 1 or tensor.numel()
    ]
    sizes = [max(labels.shape[a] for labels, _ in parts) for a in range(call.out.ndim)]
    return torch.cat(
        [
            labels.expand([t.shape[axis] if a == axis else n for a, n in enumerate(sizes)])
            for labels, t in parts
        ],
        dim=axis,
    )


def stack(trace: Trace, call: Call) -> Tensor:
    """Tensors beside each other along a new axis."""
    parts = [trace.read(tensor) for tensor in call.arguments["tensors"]]
    sizes = [max(labels.shape[a] for labels in parts) for a in range(parts[0].ndim)]
    return torch.stack([p.expand(sizes) for p in parts], dim=call.arguments.get("dim", 0))


def picked(trace: Trace, call: Call) -> Tensor:
    """Positions taken by number along one axis.

    Where the class is the same all along it, whatever the numbers are. Where classes differ, only
    if the numbers are constants of the code, which then write them down.
    """
    inputs, index = call.arguments["self"], call.arguments["index"]
    axis = call.arguments["dim"] % inputs.ndim
    if call.name == "aten.index_select" and axis == 0:
        found = _table(trace, inputs)
        if found is not None:
            return spread(found, -1, call.out.ndim)
    labels = trace.labels.find(trace.read(inputs))
    if labels.shape[axis] == 1 or not bool((labels >= FIRST).any()):
        return labels.narrow(axis, 0, 1) if labels.shape[axis] > 1 else labels
    if not trace.fixed(index):
        raise Refused(f"{call.name} takes channels by numbers that are computed")
    (result,) = movement(trace, call)
    line = torch.arange(inputs.shape[axis], device="cpu")
    line = line.reshape([-1 if a == axis else 1 for a in range(inputs.ndim)])
    operation: Any = call.operation
    places = operation(line.expand(inputs.shape), axis, index.cpu())
    trace.labels.written.append(written_at(result.expand(places.shape), places))
    return result


def indexed(trace: Trace, call: Call) -> Tensor:
    """Positions taken by numbers, one list of them for each of several axes; as `picked`."""
    inputs: Tensor = call.arguments["self"]
    indices: Sequence[Tensor | None] = call.arguments["indices"]
    axes = [a for a, index in enumerate(indices) if index is not None]
    given = [index for index in indices if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        raise Refused(f"{call.name} takes positions by a mask")
    if axes == [0] and (found := _table(trace, inputs)) is not None:
        return spread(found, -1, call.out.ndim)
    labels = trace.labels.find(trace.read(inputs))
    if bool((labels >= FIRST).any()) and any(labels.shape[a] > 1 for a in axes):
        if not all(trace.fixed(index) for index in given):
            raise Refused(f"{call.name} takes channels by numbers that are computed")
        moved = [None if index is None else index.cpu() for index in indices]
        result: Tensor = torch.ops.aten.index(full(trace, inputs), moved)
        places = torch.ops.aten.index(_numbered(inputs.shape, axes), moved)
        trace.labels.written.append(written_at(result, places))
        return narrowed(result)
    new = [1] * max(index.ndim for index in given)
    rest = [labels.shape[a] for a in range(labels.ndim) if a not in axes]
    for a in axes:
        labels = labels.narrow(a, 0, 1)
    adjacent = axes == list(range(axes[0], axes[-1] + 1))
    at = axes[0] if adjacent else 0
    return labels.reshape([*rest[:at], *new, *rest[at:]])


def put(trace: Trace, call: Call) -> Tensor:
    """Values written to, or added at, positions by number along axes on which classes stay."""
    target: Tensor = call.arguments["self"]
    source = call.get("source", "src", "values", "value")
    if call.name == "aten.index_put":
        indices = call.arguments["indices"]
        axes = [a for a, index in enumerate(indices) if index is not None]
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            raise Refused(f"{call.name} takes positions by a mask")
    else:
        axes = [call.arguments["dim"] % target.ndim]
    one = trace.labels.find(trace.read(target))
    if any(one.shape[a] > 1 for a in axes):
        raise Refused(f"{call.name} writes to channels by number")
    if not isinstance(source, Tensor):
        return one
    other = trace.labels.find(trace.read(source))
    if call.name == "aten.index_put":  # its positions come first, or where the axes lie together
        rest = target.ndim - len(axes)
        if axes != list(range(len(axes))):
            raise Refused(f"{call.name} writes behind other axes")
        other = other.reshape([1] * (rest - other.ndim) + list(other.shape))
        lead = other.shape[: other.ndim - rest]
        if any(n > 1 for n in lead):
            raise Refused(f"{call.name} writes different channels to different places")
        other = other.reshape([1] * len(axes) + list(other.shape[other.ndim - rest :]))
    elif any(other.shape[a] > 1 for a in axes if other.ndim == target.ndim):
        raise Refused(f"{call.name} writes different channels to different places")
    return trace.labels.meet(one, other, call.name)


def _table(trace: Trace, inputs: Tensor) -> Tensor | None:
    """Classes of the columns of a table of parameters; None for anything else."""
    weight = trace.weight(inputs) if inputs.ndim == 2 else None
    whole = weight is not None and [a and a.axis for a in weight.axes] == [0, 1]
    return trace.table(weight) if weight is not None and whole else None


def _numbered(shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    """A number for each position along some axes, the same on all others."""
    at = torch.zeros((1,) * len(shape), dtype=torch.int64, device="cpu")
    for axis in axes:
        line = torch.arange(shape[axis], device="cpu")
        at = at * shape[axis] + line.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return at.expand(tuple(shape))


def pad(trace: Trace, call: Call) -> Tensor:
    """Padding with a number; channels that it fills have their number written in the code."""
    inputs = call.arguments["self"]
    labels = trace.read(inputs)
    amounts = call.arguments["pad"]
    for step in range(len(amounts) // 2):
        here = list(amounts[2 * step : 2 * step + 2])
        if not any(here):
            continue
        axis = labels.ndim - 1 - step
        roots = trace.labels.find(labels)
        varies = bool((roots.amax(dim=axis) != roots.amin(dim=axis)).any())
        if not varies:
            labels = labels.narrow(axis, 0, 1)  # a border of constants leaves a class what it is
            continue
        wide = [inputs.shape[a] if a == axis else n for a, n in enumerate(labels.shape)]
        labels = nn.functional.pad(labels.expand(wide), [0] * (2 * step) + here, value=WRITTEN)
    return labels


def laid_out(trace: Trace, call: Call) -> Tensor:
    """A tensor told in place how it lies, as pooled `channels_last` ones are: its numbers stay."""
    return trace.read(call.out)


RULES: dict[str, Rule] = {
    **named(
        "repeat roll flip tile repeat_interleave rot90 pixel_shuffle pixel_unshuffle", movement
    ),
    **named("channel_shuffle native_channel_shuffle im2col diagonal_copy tril triu", movement),
    **named("slice_scatter select_scatter diagonal_scatter", movement),
    **named("reflection_pad1d reflection_pad2d reflection_pad3d", movement),
    **named("replication_pad1d replication_pad2d replication_pad3d", movement),
    **named("_unsafe_view _reshape_copy view reshape split_with_sizes_copy", movement),
    **named("unbind_copy slice_copy select_copy permute_copy expand_copy", movement),
    **named("index_select gather take_along_dim", picked),
    **named("index _unsafe_index", indexed),
    **named("index_add index_copy scatter_add scatter index_put", put),
    **named("cat concatenate", concatenate),
    **named("stack", stack),
    **named("constant_pad_nd", pad),
    **named("as_strided", laid_out),
}
