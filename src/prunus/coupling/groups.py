"""From the labels of a finished walk to groups of classes with their members."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.coupling.labels import FIRST, Labels
from prunus.coupling.types import Coupling, Group, Slot
from prunus.coupling.walk import LAYERS, GraphWalk, export

Place = tuple[str, int, str]  # parameter, axis, role


@dataclass
class _Class:
    """What belongs to one label."""

    slots: dict[Place, list[int]] = field(default_factory=lambda: defaultdict(list))
    layers: dict[str, dict[str, None]] = field(
        default_factory=lambda: {"producer": {}, "consumer": {}, "norm": {}}
    )


def layer_names(model: nn.Module) -> list[str]:
    """Names of all linear and convolution modules."""
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS)]


def coupling_of_trace(model: nn.Module, example: Any) -> Coupling:
    """The coupling of a model that torch.export can follow; raises NotTraceable otherwise."""
    walk = GraphWalk(model, export(model, example))
    walk.run()
    return groups_of(walk, layer_names(model))


def groups_of(walk: GraphWalk, layers: list[str]) -> Coupling:
    """Gather the members of each class, and the classes of each set of producers.

    Args:
        walk: a walk that has run.
        layers: names of all linear and convolution modules, for the reasons of the refused.
    """
    labels = walk.labels
    _slots_of_raw_parameters(walk)
    reasons: dict[int, str] = {}
    for touched, reason in labels.reasons:
        for root in labels.of([touched]).tolist():
            reasons.setdefault(root, reason)
    written = set(labels.of(labels.written).tolist())
    inexact = set(labels.of(labels.inexact).tolist())

    classes: dict[int, _Class] = defaultdict(_Class)
    for parameter, axis, role, touched in walk.members:
        for index, root in enumerate(labels.find(touched).tolist()):
            if root >= FIRST:
                classes[root].slots[parameter, axis, role].append(index)
    for kind, name, touched in walk.layers:
        for root in labels.of([touched]).tolist():
            if root >= FIRST:
                classes[root].layers[kind][name] = None

    order = {name: i for i, (kind, name, _) in enumerate(walk.layers) if kind == "producer"}
    patterns: dict[tuple[object, ...], list[_Class]] = defaultdict(list)
    why: dict[str, str] = {}
    for root, one in classes.items():
        if not one.layers["consumer"]:
            reasons.setdefault(root, "no linear or convolution layer reads it")
        if root in reasons:
            for name in one.layers["producer"]:
                why.setdefault(name, reasons[root])
        else:
            pattern = tuple((place, len(where)) for place, where in one.slots.items())
            producers = tuple(one.layers["producer"])
            key = (producers, pattern, root in written, root in inexact)
            patterns[key].append(one)

    groups: list[Group] = []
    names: dict[str, int] = defaultdict(int)
    for (_, _, is_written, is_inexact), members in sorted(
        patterns.items(), key=lambda item: _rank(item[1][0], order)
    ):
        members = sorted(members, key=lambda one: _rank(one, order))
        name = next(iter(members[0].layers["producer"]))
        names[name] += 1
        groups.append(
            Group(
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                size=len(members),
                slots=_slots(members),
                producers=tuple(members[0].layers["producer"]),
                consumers=tuple(members[0].layers["consumer"]),
                norms=tuple(members[0].layers["norm"]),
                exact=not is_inexact,
                written=bool(is_written),
            )
        )
    removable = {producer for group in groups for producer in group.producers}
    refused = {
        name: walk.refused.get(name)
        or why.get(name)
        or "no linear or convolution operation uses its weight on the example"
        for name in layers
        if name not in removable
    }
    return Coupling(tuple(groups), refused)


def _rank(one: _Class, order: dict[str, int]) -> tuple[int, int]:
    """Place of a class: its first producer in order of execution, and its first row there."""
    first = min(one.layers["producer"], key=lambda name: order[name])
    return order[first], min(one.slots[f"{first}.weight", 0, "out"])


def _slots(members: list[_Class]) -> tuple[Slot, ...]:
    slots = []
    for parameter, axis, role in members[0].slots:
        where = [one.slots[parameter, axis, role] for one in members]
        slots.append(
            Slot(
                parameter=parameter,
                axis=axis,
                role=role,  # type: ignore[arg-type]
                index=torch.tensor([i for one in where for i in one]),
                unit=torch.tensor([u for u, one in enumerate(where) for _ in one]),
            )
        )
    return tuple(slots)


def _slots_of_raw_parameters(walk: GraphWalk) -> None:
    """Members in parameters that scale or shift classes directly.

    An entry that meets one class belongs to it; an entry that meets several is shared by them
    and stays. The entries of a class must be whole slices along one axis, else it is refused.
    """
    labels = walk.labels
    owner: dict[int, set[int]] = defaultdict(set)
    for atoms, touched in labels.met:
        for atom, root in zip(atoms.tolist(), labels.find(touched).tolist(), strict=True):
            owner[-1 - atom].add(root)
    for name, shape, offset in labels.atoms:
        table = torch.zeros(shape.numel(), dtype=torch.long)
        for entry in range(shape.numel()):
            roots = owner.get(offset + entry, set())
            if len(roots) == 1:
                table[entry] = next(iter(roots))
        table = table.reshape(shape)
        if (table >= FIRST).any():
            axis = _axis_of_slices(table, labels, name)
            if axis is not None:
                along = table.movedim(axis, 0).reshape(shape[axis], -1).amax(dim=1)
                walk.member(name, axis, "out", along)


def _axis_of_slices(table: Tensor, labels: Labels, name: str) -> int | None:
    """The axis along which each class is made of whole slices; None (and refused) if none is."""
    for axis in range(table.ndim):
        slices = table.movedim(axis, 0).reshape(table.shape[axis], -1)
        if bool((slices == slices[:, :1]).all()) and (table.ndim == 1 or table.shape[axis] > 1):
            return axis
    labels.refuse(table, f"the parameter `{name}` mixes its entries with those of others")
    return None
