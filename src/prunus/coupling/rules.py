"""What each operation of an exported graph does to labels; an operation without a rule refuses."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.fx import Node

from prunus.coupling.labels import CONSTANT, DATA, FIRST, WRITTEN, Labels, distinct


class Refused(Exception):
    """An operation through which channels cannot be followed; its text is the reason."""


class Walk(Protocol):
    """What a rule may ask of the walk over the graph."""

    labels: Labels

    def read(self, argument: Any) -> Tensor:
        """Labels of a tensor argument."""

    def module(self, weight: Any, kinds: tuple[type[nn.Module], ...]) -> str:
        """Name of the module whose own weight this is, or Refused."""

    def parameter(self, argument: Any) -> str | None:
        """The `state_dict` name behind an argument, None for no argument; Refused if computed."""

    def member(self, parameter: str, axis: int, role: str, labels: Tensor) -> None:
        """Say that slice i of a parameter along `axis` belongs to class `labels[i]`."""

    def layer(self, kind: str, module: str, labels: Tensor) -> None:
        """Say that a module is a "producer", "consumer" or "norm" of classes."""


Rule = Callable[[Walk, Node, dict[str, Any]], Any]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def short(node: Node) -> str:
    """The operation's name without its overload, as in "aten.add"."""
    return str(node.target).rsplit(".", 1)[0]


def shape_of(node: Node) -> torch.Size:
    """The shape of a node's (first) output."""
    value = node.meta["val"]
    return (value if isinstance(value, Tensor) else value[0]).shape


def linear(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """A linear layer: reads the classes on its last axis and makes one class per row."""
    name = walk.module(a["weight"], (nn.Linear,))
    bias = walk.parameter(a.get("bias"))
    classes = walk.labels.column(walk.read(a["input"]), -1, f"`{name}`")
    walk.member(f"{name}.weight", 1, "in", classes)
    walk.layer("consumer", name, classes)
    made = walk.labels.new(shape_of(node)[-1])
    walk.member(f"{name}.weight", 0, "out", made)
    if bias is not None:
        walk.member(bias, 0, "out", made)
    walk.layer("producer", name, made)
    return made.expand(shape_of(node))


def convolution(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """A convolution: reads the classes on its channel axis and makes one class per filter.

    A depthwise convolution passes its input classes on. Any other grouped one keeps its number
    of conv groups: the channels at the same place in each conv group form one class.
    """
    if a.get("transposed", False):
        raise Refused("a transposed convolution has no rule")
    name = walk.module(a["weight"], CONVOLUTIONS)
    bias = walk.parameter(a.get("bias"))
    labels = walk.read(a["input"])
    shape, axis = shape_of(node), labels.ndim - a["weight"].meta["val"].ndim + 1
    groups, wide, out = a.get("groups", 1), labels.shape[axis], shape[axis]
    classes = walk.labels.column(labels, axis, f"`{name}`")
    if 1 < groups == wide:
        made = torch.where(classes >= FIRST, classes, DATA).repeat_interleave(out // groups)
        if (made == DATA).all():
            raise Refused("a depthwise convolution of values that no removable channel makes")
    else:
        shared = classes.reshape(groups, wide // groups)
        place = shared[0]
        for row in shared[1:]:
            place = walk.labels.meet(place, row, f"`{name}` (grouped)")
        walk.member(f"{name}.weight", 1, "in", place)
        walk.layer("consumer", name, place)
        made = walk.labels.new(out // groups).repeat(groups)
    walk.member(f"{name}.weight", 0, "out", made)
    if bias is not None:
        walk.member(bias, 0, "out", made)
    walk.layer("producer", name, made)
    return spread(made, axis, shape)


def spread(labels: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """One label per position along `axis`, repeated over all other axes."""
    return labels.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


def channel_norm(walk: Walk, node: Node, a: dict[str, Any]) -> Any:
    """Batch and instance norm: each channel has its own statistics and parameters."""
    labels = walk.read(a["input"])
    classes = walk.labels.column(labels, 1, short(node))
    for key in ("weight", "bias", "running_mean", "running_var"):
        parameter = walk.parameter(a.get(key))
        if parameter is not None:
            walk.member(parameter, 0, "out", classes)
            walk.layer("norm", parameter.rpartition(".")[0], classes)
    result = after_constant_map(spread(classes, 1, labels.shape))
    nothing = torch.full((1,), DATA)
    return result if isinstance(node.meta["val"], Tensor) else (result, nothing, nothing)


def after_constant_map(labels: Tensor) -> Tensor:
    """Labels after a fixed map of each value: raw parameters are no longer themselves."""
    return torch.where(labels < 0, torch.full_like(labels, DATA), labels)


def layer_norm(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """Layer and RMS norm over the last axes: not exact where several classes share statistics."""
    labels = walk.read(a["input"])
    window = labels.shape[labels.ndim - len(a["normalized_shape"]) :]
    rows = walk.labels.find(labels).reshape(-1, math.prod(window))
    result = _shared_statistics(walk, rows).reshape(labels.shape)
    for key in ("weight", "bias"):
        parameter = walk.parameter(a.get(key))
        if parameter is not None:
            atoms = walk.labels.atom(parameter, window)
            result = walk.labels.meet(result, atoms, short(node))
            walk.layer("norm", parameter.rpartition(".")[0], labels)
    return result


def group_norm(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """Group norm: the channels at the same place in each norm group form one class."""
    labels, groups = walk.read(a["input"]), a["num_groups"]
    classes = walk.labels.column(labels, 1, short(node))
    if 1 < groups < len(classes):
        shared = classes.reshape(groups, -1)
        for row in shared[1:]:
            walk.labels.meet(shared[0], row, short(node))
    for key in ("weight", "bias"):
        parameter = walk.parameter(a.get(key))
        if parameter is not None:
            walk.member(parameter, 0, "out", classes)
            walk.layer("norm", parameter.rpartition(".")[0], classes)
    result = _shared_statistics(walk, walk.labels.find(classes).reshape(groups, -1))
    return spread(result.flatten(), 1, labels.shape)


def _shared_statistics(walk: Walk, rows: Tensor) -> Tensor:
    """Labels after a norm over each row; constants beside a class become data."""
    is_class = rows >= FIRST
    several = (rows != rows.amax(dim=1, keepdim=True)).any(dim=1)
    walk.labels.inexact.append(distinct(rows[several][is_class[several]]))
    return torch.where(is_class, rows, DATA)


def elementwise(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """Operations on values at the same position: what meets becomes one class.

    Raw parameters may scale or shift classes; in any other operation they count as data, since a
    removed class sets them to zero (and might divide by it).
    """
    parts = [walk.read(v) for v in a.values() if isinstance(v, Node)]
    linear_in_each = short(node) in ("aten.add", "aten.sub", "aten.mul")
    if not (linear_in_each and len(parts) > 1):
        parts = [after_constant_map(part) for part in parts]
    labels = parts[0]
    for part in parts[1:]:
        labels = walk.labels.meet(labels, part, short(node))
    return labels.expand(shape_of(node))


def prelu(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """A ReLU with a learned slope, one for all channels or one per channel."""
    labels = walk.read(a["self"])
    slope = walk.parameter(a["weight"])
    classes = walk.labels.column(labels, 1, short(node)) if labels.ndim > 1 else labels
    if slope is not None and a["weight"].meta["val"].numel() > 1:
        walk.member(slope, 0, "out", classes)
    return after_constant_map(labels)


def identity(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """Copies, casts and dropout."""
    return walk.read(next(iter(a.values())))


def spatial(walk: Walk, node: Node, a: dict[str, Any]) -> Any:
    """Pooling and resampling: mix positions of the trailing axes, which the name counts."""
    labels = walk.read(next(iter(a.values())))
    rank = next(int(c) for c in reversed(short(node).removesuffix("_with_indices")[:-1])
                if c.isdigit())  # fmt: skip
    merged = walk.labels.merge(labels, range(-rank, 0), short(node)).expand(shape_of(node))
    return merged if isinstance(node.meta["val"], Tensor) else (merged, torch.full((1,), DATA))


def reduction(walk: Walk, node: Node, a: dict[str, Any]) -> Any:
    """Means, sums and extrema over axes along which the class stays the same."""
    labels = walk.read(a["self"])
    dims = a.get("dim")
    if dims is None or dims == []:
        dims = range(labels.ndim)
    merged = walk.labels.merge(labels, [dims] if isinstance(dims, int) else dims, short(node))
    shape = shape_of(node)
    merged = merged.reshape(shape)
    return merged if isinstance(node.meta["val"], Tensor) else (merged, torch.full((1,), DATA))


def softmax(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """Softmax, harmless only along an axis on which the class stays the same."""
    labels = walk.read(a["self"])
    return walk.labels.merge(labels, [a["dim"]], short(node)).expand(labels.shape)


def movement(walk: Walk, node: Node, a: dict[str, Any]) -> Any:
    """Operations that only move values: run on the labels themselves (exact in float64)."""

    def as_values(argument: Any) -> Any:
        if isinstance(argument, Node):
            return walk.read(argument).to(torch.float64)
        if isinstance(argument, list | tuple):
            return [as_values(x) for x in argument]
        return argument

    target: Any = node.target
    if short(node) in ("aten.view", "aten._unsafe_view", "aten.reshape"):
        result = as_values(node.args[0]).reshape(as_values(node.args[1]))
    else:
        keywords = {key: as_values(value) for key, value in node.kwargs.items()}
        result = target(*[as_values(x) for x in node.args], **keywords)
    if isinstance(result, Tensor):
        return result.to(torch.long)
    return tuple(part.to(torch.long) for part in result)


def pad(walk: Walk, node: Node, a: dict[str, Any]) -> Any:
    """Padding; channels that a constant fills have their number written in the code."""
    if a.get("mode", "constant") != "constant":
        return movement(walk, node, a)
    labels = walk.read(a["self"])
    amounts = a["pad"]
    for step in range(len(amounts) // 2):
        axis = labels.ndim - 1 - step
        roots = walk.labels.find(labels)
        varies = labels.shape[axis] > 0 and bool(
            (roots.amax(dim=axis) != roots.amin(dim=axis)).any()
        )
        here = [0] * (2 * step) + list(amounts[2 * step : 2 * step + 2])
        fill = WRITTEN if varies else CONSTANT
        labels = nn.functional.pad(labels, here, value=fill)
    return labels


def glu(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """A gated half: the value and its gate are one class."""
    value, gate = walk.read(a["self"]).chunk(2, dim=a.get("dim", -1))
    return after_constant_map(walk.labels.meet(value, gate, short(node)))


def constant(walk: Walk, node: Node, a: dict[str, Any]) -> Tensor:
    """A tensor made from nothing, of a size that the code writes down."""
    shape = shape_of(node)
    return torch.full(shape, WRITTEN if math.prod(shape) > 1 else CONSTANT)


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names.split()}


RULES: dict[str, Rule] = {
    **_named("linear", linear),
    **_named("conv1d conv2d conv3d convolution", convolution),
    **_named("batch_norm instance_norm _native_batch_norm_legit", channel_norm),
    **_named("_native_batch_norm_legit_no_training", channel_norm),
    **_named("layer_norm rms_norm", layer_norm),
    **_named("group_norm", group_norm),
    **_named("prelu", prelu),
    **_named("glu", glu),
    **_named("where hardswish log_sigmoid", elementwise),  # those torch does not tag as such
    **_named("clone contiguous alias detach dropout feature_dropout alpha_dropout", identity),
    **_named("to _to_copy lift_fresh_copy type_as", identity),
    **_named("max_pool1d max_pool2d max_pool3d max_pool2d_with_indices", spatial),
    **_named("max_pool3d_with_indices max_pool1d_with_indices", spatial),
    **_named("avg_pool1d avg_pool2d avg_pool3d", spatial),
    **_named("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", spatial),
    **_named("_adaptive_avg_pool2d _adaptive_avg_pool3d", spatial),
    **_named("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", spatial),
    **_named("upsample_nearest1d upsample_nearest2d upsample_nearest3d", spatial),
    **_named("upsample_linear1d upsample_bilinear2d upsample_trilinear3d", spatial),
    **_named("upsample_bicubic2d", spatial),
    **_named("mean sum amax amin max min var std", reduction),
    **_named("softmax _softmax log_softmax _log_softmax", softmax),
    **_named("view _unsafe_view reshape permute transpose t unsqueeze squeeze flatten", movement),
    **_named("unflatten slice select cat stack split split_with_sizes chunk unbind", movement),
    **_named("expand repeat movedim narrow roll flip tile repeat_interleave", movement),
    **_named("numpy_T pixel_shuffle pixel_unshuffle channel_shuffle", movement),
    **_named("pad constant_pad_nd", pad),
    **_named("zeros_like ones_like full_like new_zeros new_ones new_full", constant),
}


def rule_for(node: Node) -> Rule:
    """The rule of an operation, or Refused with its name."""
    name = short(node)
    if name in RULES:
        return RULES[name]
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags:
        return elementwise
    if not node.all_input_nodes:
        return constant
    if "attention" in name or "transformer" in name:
        raise Refused(f"attention ({name}) has no rule")
    raise Refused(f"operation {name} has no rule")
