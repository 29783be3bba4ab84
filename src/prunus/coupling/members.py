"""Which slices of which parameters belong to which class, once all labels are known."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from prunus.coupling.labels import (
    FIRST,
    Labels,
    ascending,
    by_number,
    distinct,
    in_order,
    pairs_of,
)
from prunus.coupling.parts import settle_parts
from prunus.coupling.trace import LabelTrace
from prunus.coupling.types import Role
from prunus.coupling.weights import Book

__all__ = ["Place", "settled"]

Place = tuple[str, int, Role]  # parameter, axis, role
Uses = dict[Place, tuple[Tensor, Tensor]]  # positions, and what uses each


def settled(trace: LabelTrace) -> Uses:
    """Positions and classes of every place, each position in one class.

    A slice that several classes use is cut with all of them, so these are made one class; a slice
    that a class shares with values of no class has to stay, and the class with it. That is how a
    second call of a layer, or a norm that two streams share, comes out right.
    """
    uses = _uses(trace)
    uses.update(_entries(trace, uses))
    every = _Together(uses)
    every.one_class_each(trace.labels)
    if trace.parts.found:
        settle_parts(trace.labels, trace.parts.found)
        every.one_class_each(trace.labels)
    for name in _turned(trace, uses):
        trace.pinned.setdefault(name, "it is used transposed too")
    for name, reason in trace.pinned.items():
        for (parameter, _, _), (_, labels) in uses.items():
            if parameter == name:
                trace.labels.refuse(labels, f"`{name}`: {reason}")
    roots = trace.labels.find(every.labels)
    keep = (roots >= FIRST).nonzero().flatten()
    slice_, root = pairs_of(every.slices[keep], roots[keep])
    return every.apart(slice_, root)


class _Together:
    """The slices of all places in one array, as one operation on many numbers costs what a few do.

    Attributes:
        slices: a number for every slice of every place, ascending from place to place.
        labels: what uses it.
    """

    def __init__(self, uses: Uses) -> None:
        self._places = list(uses)
        self._neighbours: tuple[Tensor, Tensor] | None = None
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        index = torch.cat([none, *(own for own, _ in uses.values())])
        self.labels = torch.cat([none, *(labels for _, labels in uses.values())])
        self._step = int(index.max()) + 1 if len(index) else 1
        counts = torch.tensor([len(own) for own, _ in uses.values()], dtype=torch.int64)
        self.slices = torch.arange(len(uses)).repeat_interleave(counts) * self._step + index
        self._once = ascending(self.slices, strictly=True)  # each slice is used once, and in order

    def one_class_each(self, labels: Labels) -> None:
        """Unite what uses a slice; refuse a class beside anything else there."""
        if self._once:
            return
        left, right = self._pairs()
        both = (left >= FIRST) & (right >= FIRST)
        labels.unite(left[both], right[both])
        others = self.slices[self.labels < FIRST]
        if not len(others):
            return
        beside = torch.isin(self.slices, others) & (self.labels >= FIRST)
        where = self.slices[beside] // self._step
        for number, (users,) in by_number(where, self.labels[beside]):
            labels.refuse(
                users,
                f"`{self._places[number][0]}` reads it together with values that no removable "
                f"channel makes",
            )

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """What uses a slice twice or more, one after the other."""
        if self._neighbours is None:
            order = in_order(self.slices)
            slices, own = self.slices[order], self.labels[order]
            same = slices[1:] == slices[:-1]
            self._neighbours = own[:-1][same], own[1:][same]
        return self._neighbours

    def apart(self, slices: Tensor, labels: Tensor) -> Uses:
        """Ascending slices and what uses them by place; places without any are left out."""
        if not self._places:
            return {}
        firsts = torch.arange(len(self._places) + 1) * self._step
        ends = torch.searchsorted(slices, firsts)
        parts = zip(
            self._places,
            torch.tensor_split(slices % self._step, ends[1:-1]),
            torch.tensor_split(labels, ends[1:-1]),
            strict=True,
        )
        return {place: (index, own) for place, index, own in parts if len(index)}


def _turned(trace: LabelTrace, uses: Uses) -> list[str]:
    """Weights that operations read along the axis of outputs: a layer's, or those of others."""
    found: dict[str, None] = {}
    for parameter, axis, role in uses:
        owner = trace.book.owner(parameter)
        if owner is not None:
            turned = axis != trace.book.axes(owner)[role]
        else:
            both = role == "in" and (parameter, axis, "out") in uses
            turned = both and parameter not in trace.book.tied
        if turned:
            found[parameter] = None
    return list(found)


def _uses(trace: LabelTrace) -> Uses:
    gathered: dict[Place, list[tuple[Tensor, Tensor]]] = {}
    for parameter, axis, role, index, labels in trace.members:
        place = (parameter, axis, cast(Role, role))
        gathered.setdefault(place, []).append((index, labels.expand(index.shape)))
    return {
        place: (torch.cat([i for i, _ in parts]), torch.cat([own for _, own in parts]))
        for place, parts in gathered.items()
    }


def _entries(trace: LabelTrace, uses: Uses) -> Uses:
    """Members in parameters that scale or shift classes directly.

    Entries that meet all classes alike (a shift by position) belong to none and stay. Otherwise
    the classes that share an entry are one; the entries of a class must be whole slices along one
    axis, else it is refused.
    """
    labels, book = trace.labels, trace.book
    if not labels.met:
        return {}
    found: Uses = {}
    for number, parts in sorted(_by_parameter(book, trace.met()).items()):
        entry = book.entries[number]
        own, classes = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        sizes, strides, offset = entry.shape
        if len(sizes) == 1 and ascending(own, strictly=True):  # one class an entry
            line = own - (entry.first + offset)
            if strides[0] > 1:
                line = line.div(strides[0], rounding_mode="floor")
            found[entry.name, 0, "out"] = (line, classes)
            continue
        place, roots = own - entry.first, labels.find(classes)
        apart = _apart(labels, place, roots)
        if apart is None:
            continue
        roots, index = apart, entry.index(place)
        axis = _axis_of_slices(index, roots, sizes, len(distinct(place)))
        if axis is None:
            labels.refuse(roots, f"the parameter `{entry.name}` mixes its entries with others")
            continue
        found[entry.name, axis, "out"] = (index[axis], roots)
    for key, (index_, roots) in found.items():
        if key in uses:
            before = uses[key]
            found[key] = (torch.cat([before[0], index_]), torch.cat([before[1], roots]))
    return found


def _by_parameter(
    book: Book, met: Sequence[tuple[Tensor, Tensor]]
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """What entries meet by the place in `entries` of the parameter they belong to.

    Args:
        book: the parameters.
        met: entries by number, ascending, and classes; nearly always those of one parameter.
    """
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    ends = torch.stack([numbers[end] for numbers, _ in met for end in (0, -1)])
    owners = book.at(ends).view(-1, 2).tolist()
    for (numbers, classes), (first, last) in zip(met, owners, strict=True):
        if first == last:
            found.setdefault(first, []).append((numbers, classes))
            continue
        for owner, part in by_number(book.at(numbers), numbers, classes):
            found.setdefault(owner, []).append((part[0], part[1]))
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
