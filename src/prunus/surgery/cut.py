"""Positions cut out of a model's tensors, with the attributes and norms that follow."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.coupling import Group
from prunus.hints import Batch
from prunus.ranking import count_true
from prunus.surgery.attributes import Cuts, bare_norms, update_attributes
from prunus.surgery.configs import configured
from prunus.surgery.following import follow, readings_of
from prunus.surgery.norms import (
    describe,
    fold_rms,
    is_rms,
    kind_of,
    norms_across,
    scale_epsilon,
)
from prunus.surgery.readings import run
from prunus.surgery.rebuilt import Shapes
from prunus.surgery.verify import Reference

__all__ = ["Cut", "changes_norms", "cut", "cuts_inexactly", "why_whole"]

Removed = dict[str, dict[int, Tensor]]  # True where a position along an axis of a tensor goes


def why_whole(model: nn.Module, group: Group, *, inexact: bool) -> str | None:
    """Why a group's classes cannot be cut out of the model, or None where they can."""
    if group.written:
        return (
            "the model's code writes the number of its channels down (it pads them, or adds a "
            "constant of that size), so that no attribute can make them fewer"
        )
    if group.drawn:
        return (
            "the network draws random numbers for its channels, each its own: with fewer channels "
            "it would draw others, so that the smaller network could not be compared"
        )
    if not inexact and kind_of(model, group) == "inexact":
        return (
            f"{describe(model, group)} takes its statistics over its channels, which would change "
            f"for the others; Node(inexact=True) cuts them and measures the change"
        )
    return None


def cuts_inexactly(model: nn.Module, groups: Sequence[Group], granularity: Any) -> bool:
    """Whether norms can take other statistics in what a granularity leaves of a model, compact."""
    return granularity.inexact and any(kind_of(model, group) == "inexact" for group in groups)


def changes_norms(pruned: Any) -> bool:
    """Whether norms take other statistics in a `Pruned`'s compact network than in its `model`."""
    granularity: Any = getattr(getattr(pruned, "recipe", None), "granularity", None)
    if not getattr(granularity, "inexact", False):
        return False
    known = getattr(pruned, "coupling", None)  # a stored result has none
    return known is None or cuts_inexactly(pruned.model, known.groups, granularity)


@dataclass(frozen=True, eq=False)
class Cut:
    """What a cut has left.

    Attributes:
        kept: {layer: positions of the outputs that stay} of layers that lost some.
        statistics: {norm: positions that stay} of norms whose statistics have changed.
        gave: what the model gives on the example now, where it had to run; else None.
        said: whether its configuration says its widths, and it has run with that.
    """

    kept: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    gave: Any = None
    said: bool = False


def cut(
    model: nn.Module,
    groups: Sequence[Group],
    gone: Mapping[str, Tensor],
    example: Batch,
    *,
    reference: Reference | None = None,
    running: Callable[[nn.Module, Any], Any] = run,
    whole: Shapes | None = None,
) -> Cut:
    """Take the classes `gone[group.name]` (True where one goes) out of the model, in place.

    Tensors in several places stay one tensor. RMS norms are corrected for what they lose.

    Args:
        model: the network, whose members of these classes are zero.
        groups: that lose classes.
        gone: which.
        example: one batch, to read the widths of norms without tensors off.
        reference: what the network gives on the example before the cut.
        running: runs the network on the example after the cut.
        whole: the shapes that the network's configuration stands for, where it is to follow.
    """
    removed: Removed = defaultdict(dict)
    tensors = _by_name(model)
    outputs: dict[str, tuple[str, int]] = {}
    across: dict[str, None] = {}
    for group in groups:
        going = gone[group.name]
        if not bool(going.any()):
            continue
        for slot in group.slots:
            there = going[slot.unit]
            _remove(removed, tensors, slot.parameter, slot.axis, slot.index, there)
            layer, _, leaf = slot.parameter.rpartition(".")
            if slot.role == "out" and leaf == "weight" and layer in group.producers:
                outputs[layer] = (slot.parameter, slot.axis)
                if f"{layer}.bias" in tensors:  # also one that folding added
                    _remove(removed, tensors, f"{layer}.bias", 0, slot.index, there)
        if not group.exact:
            across.update(dict.fromkeys(norms_across(model, group)))
    before = {name: tensors[name].shape for name in removed}
    cuts: dict[tuple[str, int], tuple[int, int]] = {
        (name, axis): (len(gone_there), len(gone_there) - count_true(gone_there))
        for name, axes in removed.items()
        for axis, gone_there in axes.items()
    }
    twins: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            twins[id(tensor)].append(name)
    for (name, axis), lengths in list(cuts.items()):  # a table that a linear layer shares
        for other in twins.get(id(tensors[name]), ()):
            cuts[other, axis] = lengths
    folding = [n for n in across if f"{n}.weight" in removed and is_rms(model.get_submodule(n))]
    statistics = {
        name: _stays(removed[f"{name}.weight"][0])
        for name in across
        if f"{name}.weight" in removed and name not in folding
    }
    readings = readings_of(model, groups, gone, cuts)
    reference = reference or Reference(model, example)
    expected = None
    if len(readings) > 1:
        expected, _ = reference.given(statistics)
    _shrink(model, removed, tensors)
    update_attributes(model, cuts)
    for name in folding:
        fold_rms(model.get_submodule(name), before[f"{name}.weight"].numel())
        scale_epsilon(model.get_submodule(name), before[f"{name}.weight"].numel())
    _update_bare_norms(model, example)
    said = None if whole is None else configured(model, whole)
    if said is not None and expected is None:
        expected, _ = reference.given(statistics)
    gave, follows = follow(model, readings, example, expected, running, said)
    kept = {layer: _stays(removed[parameter][axis]) for layer, (parameter, axis) in outputs.items()}
    return Cut(kept=kept, statistics=statistics, gave=gave, said=follows)


def cuts_between(before: Mapping[str, torch.Size], model: nn.Module) -> Cuts:
    """What a model's tensors have lost since they had the shapes `before`."""
    return {
        (name, axis): (was, now)
        for name, shape in before.items()
        for axis, (was, now) in enumerate(zip(shape, _tensor(model, name).shape, strict=True))
        if was != now
    }


def _by_name(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, by each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _remove(
    removed: Removed,
    tensors: Mapping[str, Tensor],
    name: str,
    axis: int,
    places: Tensor,
    going: Tensor,
) -> None:
    """Enter those of some positions of a tensor that go."""
    known = removed[name].get(axis)
    if known is None:
        known = torch.zeros(tensors[name].shape[axis], dtype=torch.bool)
        removed[name][axis] = known.index_put_((places,), going)
    else:
        known[places[going]] = True


def _stays(gone: Tensor) -> Tensor:
    return (~gone).nonzero().flatten()


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found


def _shrink(model: nn.Module, removed: Removed, tensors: Mapping[str, Tensor]) -> None:
    """Cut positions out of parameters and buffers, wherever each of them stands."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in model.modules():
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                places[id(tensor)].append((module, leaf))
    wanted: dict[int, tuple[Tensor, dict[int, Tensor]]] = {}
    for name, axes in removed.items():
        tensor = tensors[name]
        _, own = wanted.setdefault(id(tensor), (tensor, {}))
        for axis, gone in axes.items():
            own[axis] = own[axis] | gone if axis in own else gone
    for key, (tensor, own) in wanted.items():
        smaller = tensor.detach()
        for axis, gone in sorted(own.items()):  # whole rows first, which are the quickest to copy
            index = _stays(gone).to(tensor.device)
            smaller = smaller.index_select(axis, index)
        new = (
            nn.Parameter(smaller, requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else smaller
        )
        for module, leaf in places[key]:
            home: dict[str, Any] = (
                module._parameters if leaf in module._parameters else module._buffers
            )
            home[leaf] = new


def _update_bare_norms(model: nn.Module, example: Batch) -> None:
    """Widths of norms that hold no tensor, read off as they run."""
    handles = [
        module.register_forward_pre_hook(lambda m, inputs, read=read: read(m, inputs[0]))
        for module, read in bare_norms(model).items()
    ]
    try:
        if handles:
            with contextlib.suppress(Exception):  # the verification runs it again and reports
                run(model, example)
    finally:
        for handle in handles:
            handle.remove()
