"""Which slices of which parameters belong to which class, once all labels are known."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from prunus.coupling.labels import FIRST, Labels, distinct, pairs_of
from prunus.coupling.parts import settle_parts
from prunus.coupling.trace import LabelTrace
from prunus.coupling.types import Role

__all__ = ["Place", "settled"]

Place = tuple[str, int, Role]  # parameter, axis, role


def settled(trace: LabelTrace) -> dict[Place, tuple[Tensor, Tensor]]:
    """Positions and classes of every place, each position in one class.

    A slice that several classes use is cut with all of them, so these are made one class; a slice
    that a class shares with values of no class has to stay, and the class with it. That is how a
    second call of a layer, or a norm that two streams share, comes out right.
    """
    uses = _uses(trace)
    uses.update(_entries(trace, uses))
    _one_class_each(trace.labels, uses)
    settle_parts(trace.labels, trace.parts.found)
    _one_class_each(trace.labels, uses)
    for name in _turned(trace, uses):
        trace.pinned.setdefault(name, "it is used transposed too, outside its layer")
    for name, reason in trace.pinned.items():
        for (parameter, _, _), (_, labels) in uses.items():
            if parameter == name:
                trace.labels.refuse(labels, f"`{name}`: {reason}")
    found = {}
    for place, (index, labels) in uses.items():
        roots = trace.labels.find(labels)
        keep = roots >= FIRST
        if bool(keep.any()):
            where, root = pairs_of(index[keep], roots[keep])
            found[place] = (where, root)
    return found


def _turned(trace: LabelTrace, uses: Iterable[Place]) -> list[str]:
    """Weights of layers that some operation reads along the axis of the layer's outputs."""
    found: dict[str, None] = {}
    for parameter, axis, role in uses:
        owner = trace.book.owner(parameter)
        if owner is not None and axis != trace.book.axes(owner)[role]:
            found[parameter] = None
    return list(found)


def _uses(trace: LabelTrace) -> dict[Place, tuple[Tensor, Tensor]]:
    gathered: dict[Place, list[tuple[Tensor, Tensor]]] = {}
    for parameter, axis, role, index, labels in trace.members:
        place = (parameter, axis, cast(Role, role))
        gathered.setdefault(place, []).append((index, labels.expand(index.shape)))
    return {
        place: (torch.cat([i for i, _ in parts]), torch.cat([own for _, own in parts]))
        for place, parts in gathered.items()
    }


def _one_class_each(labels: Labels, uses: dict[Place, tuple[Tensor, Tensor]]) -> None:
    for (parameter, _, _), (index, own) in uses.items():
        _one_class_per_slice(labels, parameter, index, own)


def _one_class_per_slice(labels: Labels, parameter: str, index: Tensor, own: Tensor) -> None:
    order = torch.argsort(index, stable=True)
    index, own = index[order], own[order]
    same = index[1:] == index[:-1]
    left, right = own[:-1][same], own[1:][same]
    both = (left >= FIRST) & (right >= FIRST)
    labels.unite(left[both], right[both])
    # A class beside anything else at one slice: find it over all uses of the slice.
    bad = distinct(index[own < FIRST])
    if len(bad):
        beside = own[torch.isin(index, bad) & (own >= FIRST)]
        labels.refuse(
            beside, f"`{parameter}` reads it together with values that no removable channel makes"
        )


def _entries(
    trace: LabelTrace, uses: dict[Place, tuple[Tensor, Tensor]]
) -> dict[Place, tuple[Tensor, Tensor]]:
    """Members in parameters that scale or shift classes directly.

    Entries that meet all classes alike (a shift by position) belong to none and stay. Otherwise
    the classes that share an entry are one; the entries of a class must be whole slices along one
    axis, else it is refused.
    """
    labels, book = trace.labels, trace.book
    if not labels.met:
        return {}
    atoms, touched = trace.met()
    owner = book.at(-1 - atoms)
    found: dict[Place, tuple[Tensor, Tensor]] = {}
    for number in distinct(owner).tolist():
        entry = book.entries[number]
        mine = owner == number
        place = atoms[mine] - entry.first
        roots = _apart(labels, place, labels.find(touched[mine]))
        if roots is None:
            continue
        index = entry.index(place)
        axis = _axis_of_slices(index, roots, entry.shape[0], len(distinct(place)))
        if axis is None:
            labels.refuse(roots, f"the parameter `{entry.name}` mixes its entries with others")
            continue
        found[entry.name, axis, "out"] = (index[axis], roots)
    for key, (index_, roots) in found.items():
        if key in uses:
            before = uses[key]
            found[key] = (torch.cat([before[0], index_]), torch.cat([before[1], roots]))
    return found


def _apart(labels: Labels, place: Tensor, roots: Tensor) -> Tensor | None:
    """The class of each entry that is met; None where all classes meet the same entries."""
    where, root = pairs_of(place, roots)
    classes, counts = torch.unique(root, return_counts=True)
    entries = len(distinct(where))
    if len(classes) > 1 and bool((counts == entries).all()):
        return None
    order = torch.argsort(where, stable=True)
    where, root = where[order], root[order]
    same = where[1:] == where[:-1]
    labels.unite(root[:-1][same], root[1:][same])
    return labels.find(roots)


def _axis_of_slices(
    index: tuple[Tensor, ...], roots: Tensor, sizes: tuple[int, ...], entries: int
) -> int | None:
    """The axis along which each class is made of whole slices; None if none is."""
    for axis, along in enumerate(index):
        if sizes[axis] == 1 and len(sizes) > 1:
            continue
        slices, _ = pairs_of(along, roots)
        if len(distinct(slices)) != len(slices):
            continue  # one slice in two classes
        if entries * sizes[axis] == len(slices) * _product(sizes):
            return axis
    return None


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
