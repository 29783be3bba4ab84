"""From the labels of a finished trace to groups of classes with their members."""

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.coupling.labels import FIRST
from prunus.coupling.members import Place, settled
from prunus.coupling.trace import LabelTrace
from prunus.coupling.types import Coupling, Group, Slot

__all__ = ["groups_of"]


@dataclass(eq=False)
class _Class:
    """What belongs to one label."""

    slots: dict[Place, Tensor] = field(default_factory=dict)
    layers: dict[str, dict[str, None]] = field(
        default_factory=lambda: {"producer": {}, "consumer": {}, "norm": {}}
    )


def groups_of(trace: LabelTrace, layers: list[str]) -> Coupling:
    """Gather the members of each class, and the classes of each set of producers.

    Args:
        trace: a trace that has run.
        layers: names of all modules that make or read channels, for the reasons of the refused.
    """
    labels = trace.labels
    slots = settled(trace)
    reasons: dict[int, str] = {}
    for touched, reason in labels.reasons:
        for root in labels.of([touched]).tolist():
            reasons.setdefault(root, reason)
    written = set(labels.tied_down().tolist())
    inexact = set(labels.of(labels.inexact).tolist())

    classes: dict[int, _Class] = defaultdict(_Class)
    for place, (index, roots) in slots.items():
        order = torch.argsort(roots, stable=True)
        found, counts = torch.unique_consecutive(roots[order], return_counts=True)
        parts = torch.split(index[order], counts.tolist())
        for root, own in zip(found.tolist(), parts, strict=True):
            classes[root].slots[place] = own
    for kind, name, touched in trace.layers:
        for root in labels.of([touched]).tolist():
            if root >= FIRST:
                classes[root].layers[kind][name] = None

    order_of = {name: i for i, (kind, name, _) in enumerate(trace.layers) if kind == "producer"}
    patterns: dict[tuple[object, ...], list[_Class]] = defaultdict(list)
    why: dict[str, str] = {}
    for root, one in sorted(classes.items()):
        if not one.layers["consumer"]:
            reasons.setdefault(root, "no linear or convolution layer reads it")
        if root in reasons:
            for name in one.layers["producer"]:
                why.setdefault(name, reasons[root])
        elif one.layers["producer"]:
            pattern = tuple((place, len(where)) for place, where in one.slots.items())
            producers = tuple(one.layers["producer"])
            patterns[producers, pattern, root in written, root in inexact].append(one)

    groups: list[Group] = []
    names: dict[str, int] = defaultdict(int)
    ranked = [
        sorted(members, key=lambda one: _rank(one, order_of)) for members in patterns.values()
    ]
    keys = list(patterns)
    for i in sorted(range(len(keys)), key=lambda i: _rank(ranked[i][0], order_of)):
        (_, _, is_written, is_inexact), members = keys[i], ranked[i]
        first = members[0]
        name = next(iter(first.layers["producer"]))
        names[name] += 1
        groups.append(
            Group(
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                size=len(members),
                slots=_slots(members),
                producers=tuple(first.layers["producer"]),
                consumers=tuple(first.layers["consumer"]),
                norms=tuple(first.layers["norm"]),
                exact=not is_inexact,
                written=bool(is_written),
            )
        )
    removable = {producer for group in groups for producer in group.producers}
    refused = {
        name: trace.refused.get(name)
        or why.get(name)
        or "no linear or convolution operation uses its weight on the example"
        for name in layers
        if name not in removable
    }
    return Coupling(tuple(groups), refused)


def _rank(one: _Class, order: dict[str, int]) -> tuple[int, int]:
    """Place of a class: its first producer in order of execution, and its first row there."""
    first = min(one.layers["producer"], key=lambda name: order[name])
    rows = [
        index
        for (parameter, _, role), index in one.slots.items()
        if role == "out" and parameter == f"{first}.weight"
    ]
    return order[first], int(rows[0].min())


def _slots(members: list[_Class]) -> tuple[Slot, ...]:
    slots = []
    for parameter, axis, role in members[0].slots:
        where = [one.slots[parameter, axis, role] for one in members]
        counts = torch.tensor([len(index) for index in where])
        slots.append(
            Slot(
                parameter=parameter,
                axis=axis,
                role=role,
                index=torch.cat(where),
                unit=torch.arange(len(members)).repeat_interleave(counts),
            )
        )
    return tuple(slots)
