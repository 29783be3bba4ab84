"""Products with a parameter: linear layers and convolutions read classes and make others."""

from typing import Any

import torch
from torch import Tensor

from prunus.coupling.calls import Call, Refused, Rule, Trace, spread
from prunus.coupling.labels import CONSTANT, DATA, FIRST, WRITTEN
from prunus.coupling.rules.attention import product_of_two
from prunus.coupling.rules.elementwise import named
from prunus.coupling.types import layer_of
from prunus.coupling.weights import Axis, Weight
from prunus.shapes import reads_values

__all__ = ["RULES"]


def product(trace: Trace, call: Call) -> Tensor:
    """A matrix product, one of whose operands may be a view of a parameter."""
    left, right = _operands(call)
    weight = trace.weight(right)
    if weight is not None:
        inner = 0 if right.ndim == 1 else right.ndim - 2
        result = _linear(trace, left, weight, inner, right, call.out.ndim)
    elif (weight := trace.weight(left)) is not None:
        turned = right if right.ndim == 1 else right.transpose(-1, -2)
        result = _linear(trace, turned, weight, left.ndim - 1, left, call.out.ndim)
        result = result.transpose(-1, -2) if result.ndim > 1 else result
    else:
        for operand in (left, right):
            trace.pin(operand, f"{call.name} reads values computed from it")
        result = product_of_two(trace, left, right, call.name)
    added = call.arguments.get("input", call.arguments.get("self"))
    if call.name in ADDING and added is not None:
        result = _plus(trace, result, added, call.name)
    return result


ADDING = ("aten.addmm", "aten.baddbmm", "aten.addmv", "aten.addbmm")


def _operands(call: Call) -> tuple[Tensor, Tensor]:
    a = call.arguments
    if call.name in ("aten.mm", "aten.bmm", "aten.mv"):
        return a["self"], a["vec" if call.name == "aten.mv" else "mat2"]
    if call.name == "aten.addmv":
        return a["mat"], a["vec"]
    if call.name == "aten.dot":
        return a["self"], a["tensor"]
    return a.get("mat1", a.get("batch1")), a.get("mat2", a.get("batch2"))


def _plus(trace: Trace, labels: Tensor, added: Tensor, operation: str) -> Tensor:
    atoms = trace.atoms(added)
    return trace.labels.meet(labels, trace.read(added) if atoms is None else atoms, operation)


def _linear(
    trace: Trace, inputs: Tensor, weight: Weight, inner: int, operand: Tensor, ndim: int
) -> Tensor:
    """Classes on the last axis of the inputs are read, and one is made for each row."""
    tied = trace.tied(weight)
    if tied is not None:
        return _tied_head(trace, inputs, weight, inner, tied, ndim)
    name = trace.name_of(weight)
    reads = weight.axes[inner]
    if reads is None:
        raise Refused(f"`{name}` reads one column of its weight at several positions")
    classes = trace.labels.column(trace.read(inputs), -1, inputs.shape[-1], f"`{name}`")
    trace.member(weight.name, reads.axis, "in", reads.index, classes)
    trace.used("in", weight, classes)
    outer = [a for a in range(operand.ndim) if a != inner]
    if not outer:
        return torch.full((1,) * ndim, DATA, device="cpu")
    made = trace.made(weight, outer[-1])
    along = weight.axes[outer[-1]]
    assert isinstance(along, Axis)  # `made` has refused anything else
    trace.member(weight.name, along.axis, "out", along.index, made)
    trace.used("out", weight, made)
    return spread(made, -1, max(2, ndim)) if ndim > 1 else made


def _tied_head(
    trace: Trace, inputs: Tensor, weight: Weight, inner: int, name: str, ndim: int
) -> Tensor:
    """A linear layer whose weight is an embedding's table: it reads its columns' classes.

    What it makes are tokens, which are never classes.
    """
    reads = weight.axes[inner]
    if reads is None or reads.axis != 1:
        raise Refused(f"`{name}` reads the table `{weight.name}` by its tokens")
    classes = trace.labels.column(trace.read(inputs), -1, inputs.shape[-1], f"`{name}`")
    classes = trace.labels.meet(trace.made(weight, inner), classes, f"`{name}`")
    trace.member(weight.name, 1, "in", reads.index, classes)
    trace.layer("tied", name, classes)
    return torch.full((1,) * ndim, DATA, device="cpu")


def bilinear(trace: Trace, call: Call) -> Tensor:
    """y_o = x₁ᵀ W_o x₂: a class for each o; what it reads stays, as products of two channels."""
    a = call.arguments
    forms = [a[name] for name in ("expand1", "expand2", "expand3", "sumdim")]
    weight = trace.weight(a["i2"])
    if forms != [[1, 3], [0], [1, 2], [2, 3]] or weight is None or len(weight.axes) != 3:
        raise Refused(f"operation {call.name} has no rule")
    name = trace.name_of(weight)
    reason = f"`{name}` multiplies it by another input's channels"
    for inputs in (a["i1"], a["i3"]):
        trace.labels.refuse(trace.read(inputs), reason)
    made = trace.made(weight, 0)
    along = weight.axes[0]
    assert isinstance(along, Axis)  # `made` has refused anything else
    trace.member(weight.name, along.axis, "out", along.index, made)
    trace.used("out", weight, made)
    return spread(made, -1, call.out.ndim)


def embedding(trace: Trace, call: Call) -> Tensor:
    """Rows of a table looked up by number: a class for each of its columns."""
    weight = trace.weight(call.arguments["weight"])
    if weight is None or len(weight.axes) != 2:
        raise Refused("its table is computed in the forward pass")
    return spread(trace.table(weight), -1, call.out.ndim)


def bag(trace: Trace, call: Call) -> tuple[Tensor, ...]:
    """Sums, means or maxima of looked up rows."""
    weight = trace.weight(call.arguments["weight"])
    if weight is None or len(weight.axes) != 2:
        raise Refused("its table is computed in the forward pass")
    return (spread(trace.table(weight), -1, call.out.ndim),)


def convolution(trace: Trace, call: Call) -> Tensor:
    """A convolution: reads the classes on its channel axis and makes one class per filter.

    A depthwise convolution passes its input classes on. Any other grouped one keeps its number
    of conv groups: the channels at the same place in each conv group form one class.
    """
    a: Any = call.arguments
    weight = trace.weight(a["weight"])
    inputs, out, groups = a["input"], call.out, a["groups"]
    wide, filters = inputs.shape[1], out.shape[1]
    if 1 < groups == wide and not a["transposed"]:
        return _plus_bias(trace, _depthwise(trace, call, weight), a["bias"], out.ndim)
    if weight is None or not weight.whole:
        raise Refused("its weights are computed in the forward pass")
    name = trace.name_of(weight)
    if a["transposed"]:
        return _plus_bias(trace, _transposed(trace, call, weight, name), a["bias"], out.ndim)
    classes = trace.labels.column(trace.read(inputs), 1, wide, f"`{name}`")
    place = _same_in_groups(trace, classes, groups, name)
    rows, columns = (axis for axis in weight.axes[:2] if axis is not None)  # it has both, as whole
    trace.member(weight.name, 1, "in", columns.index, place)
    trace.used("in", weight, place)
    made = trace.made(weight, 0)
    if groups > 1:
        made = made[: filters // groups].repeat(groups)
    trace.member(weight.name, 0, "out", rows.index, made)
    trace.used("out", weight, made)
    return _plus_bias(trace, made, a["bias"], out.ndim)


def _same_in_groups(trace: Trace, classes: Tensor, groups: int, name: str) -> Tensor:
    """One class of the channels at the same place of all groups of a convolution."""
    if groups == 1:
        return classes
    shared = classes.reshape(groups, -1)
    place = shared[0]
    for row in shared[1:]:
        place = trace.labels.meet(place, row, f"`{name}` (grouped)")
    return place


def _depthwise(trace: Trace, call: Call, weight: Weight | None) -> Tensor:
    """Each channel by filters of its own.

    They are a parameter's or a buffer's slices, or one and the same filter for all channels, as
    those that blur are.
    """
    inputs, kernel, filters = call.arguments["input"], call.arguments["weight"], call.out.shape[1]
    wide = inputs.shape[1]
    if weight is None and not _constant(trace, kernel):
        raise Refused("its weights are computed in the forward pass")
    name = call.name if weight is None else f"`{layer_of(weight.name)}`"
    classes = trace.labels.column(trace.read(inputs), 1, wide, name)
    is_class = classes >= FIRST
    made = classes if bool(is_class.all()) else torch.where(is_class, classes, DATA)
    if filters > wide:
        made = made.repeat_interleave(filters // wide)
    if not bool(is_class.any()):
        raise Refused("a depthwise convolution of values that no removable channel makes")
    along = None if weight is None else weight.axes[0]
    if weight is not None and along is not None:
        trace.member(weight.name, along.axis, "out", along.index, made)
        trace.used("out", weight, made)
    return made


def _constant(trace: Trace, kernel: Tensor) -> bool:
    """Whether filters are the same for all channels, and for all inputs."""
    labels = trace.read(kernel)
    fixed = bool(((labels == CONSTANT) | (labels == WRITTEN)).all())
    if fixed:
        reads_values(kernel)
    return fixed and bool((kernel == kernel[:1]).all())


def _transposed(trace: Trace, call: Call, weight: Weight, name: str) -> Tensor:
    """A transposed convolution, whose weight is (in, out, taps)."""
    a: Any = call.arguments
    inputs, out = a["input"], call.out
    wide, filters, groups = inputs.shape[1], out.shape[1], a["groups"]
    classes = trace.labels.column(trace.read(inputs), 1, wide, f"`{name}`")
    rows = torch.arange(wide, device="cpu")
    columns = torch.arange(filters // groups, device="cpu")
    if 1 < groups == wide:
        raise Refused("a depthwise transposed convolution has no rule")
    if groups > 1:  # all have as many inputs
        classes = _same_in_groups(trace, classes, groups, name).repeat(groups)
    trace.member(weight.name, 0, "in", rows, classes)
    trace.used("in", weight, classes)
    made = trace.made(weight, 1)
    trace.member(weight.name, 1, "out", columns, made)
    made = made.repeat(groups)
    trace.used("out", weight, made)
    return made


def _plus_bias(trace: Trace, made: Tensor, bias: Tensor | None, ndim: int) -> Tensor:
    if bias is not None:
        atoms = trace.atoms(bias)
        if atoms is None:
            raise Refused("its weights are computed in the forward pass")
        trace.labels.meet_atoms(atoms, made)
    return spread(made, 1, ndim)


RULES: dict[str, Rule] = {
    **named("mm addmm bmm baddbmm mv addmv dot", product),
    **named("_trilinear", bilinear),
    **named("embedding", embedding),
    **named("_embedding_bag _embedding_bag_forward_only", bag),
    **named("convolution _convolution convolution_overrideable", convolution),
}
