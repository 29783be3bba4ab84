"""Integer labels in place of activations, and the union-find that says which are one class.

A label tensor has as many axes as the activation it stands for; an axis along which all labels
are equal may have length 1, so that labels cost little where activations are large. Its entries are

    n >= 3        a channel class, up to the union-find
    CONSTANT      a value that no channel and no sample changes; it may meet anything
    DATA          a value that belongs to no class: inputs of the network, results of refused
                  operations; a class that is combined with it cannot be removed
    WRITTEN       a constant whose width the model's code writes down (padding, torch.zeros)
    DRAWN         random numbers, each its own
    n < 0         entry −n − 1 of the parameters that enter the computation as they are
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

CONSTANT, DATA, WRITTEN, DRAWN = 0, 1, 2, 3
FIRST = 4
REFUSED = "{} combines it with values that no removable channel makes"
MANY = 1024  # numbers of which it pays to ask whether they are sorted already


def distinct(labels: Tensor, dim: int | None = None) -> Tensor:
    """The values (or slices along `dim`) that occur, ascending."""
    if dim is None and labels.numel() > MANY and ascending(labels.flatten()):
        apart: Tensor = labels.flatten().unique_consecutive()  # type: ignore[no-untyped-call]
        return apart
    found: Tensor = labels.unique(dim=dim)  # type: ignore[no-untyped-call]
    return found


def ascending(numbers: Tensor, *, strictly: bool = False) -> bool:
    """Whether numbers in a row grow, or never fall."""
    before, after = numbers[:-1], numbers[1:]
    return bool((after > before if strictly else after >= before).all())


def pairs_of(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs of non-negative numbers that stand at the same position."""
    plain = one.dtype == other.dtype == torch.int64 and one.ndim == 1
    if plain and ascending(one, strictly=True):
        return one, other
    base = int(other.max()) + 1 if other.numel() else 1
    keys = distinct(one.to(torch.int64) * base + other)
    return keys.div(base, rounding_mode="floor"), keys % base


def written_at(labels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Classes with the places that the code writes down for them, for `Labels.written`."""
    is_class = labels >= FIRST
    return pairs_of(labels[is_class], places[is_class])


def distinct_counts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The values that occur, ascending, and how often each does."""
    found, counts = torch.unique(labels, return_counts=True)
    return found, counts


def in_order(numbers: Tensor) -> Tensor:
    """The stable order of numbers, most of which come in runs that are in order already."""
    return torch.from_numpy(np.argsort(numbers.numpy(), kind="stable"))


def by_number(
    numbers: Tensor, *beside: Tensor, order: Tensor | None = None
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Each number that occurs, ascending, with what lies beside it.

    Args:
        numbers: in any order.
        beside: as long as they are.
        order: that brings the numbers in order; they are already where it is None.
    """
    ordered = numbers if order is None else numbers[order]
    found, counts = torch.unique_consecutive(ordered, return_counts=True)
    lengths = counts.tolist()
    parts = [torch.split(b if order is None else b[order], lengths) for b in beside]
    return zip(found.tolist(), zip(*parts, strict=True), strict=True)


def broadcast(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """The shape that two broadcast to."""
    ndim = max(len(one), len(other))
    left = [1] * (ndim - len(one)) + list(one)
    right = [1] * (ndim - len(other)) + list(other)
    return [b if a == 1 else a for a, b in zip(left, right, strict=True)]


def _spans(given: Sequence[int] | None, wide: Sequence[int]) -> Tensor:
    """The entry of an operand that stands at each position, counting axes that it has itself."""
    ndim = len(wide)
    own = list(wide) if given is None else [1] * (ndim - len(given)) + list(given)[-ndim or None :]
    at = torch.zeros(tuple(wide), dtype=torch.int64, device="cpu")
    for axis in range(ndim):
        if wide[axis] == 1:
            continue
        line = torch.arange(wide[axis], device="cpu") if own[axis] > 1 else torch.zeros(wide[axis])
        view = [-1 if i == axis else 1 for i in range(ndim)]
        at = at * wide[axis] + line.to(torch.int64).reshape(view)
    return at


def _varies(given: Sequence[int] | None, wide: Sequence[int]) -> bool:
    """Whether other entries of an operand stand at other positions."""
    own = wide if given is None else given  # its axes are the last ones
    return any(n > 1 and m > 1 for n, m in zip(own[::-1], wide[::-1], strict=False))


def narrowed(labels: Tensor) -> Tensor:
    """The same labels with length 1 along every axis on which they are equal."""
    for axis in range(labels.ndim):
        if labels.shape[axis] > 1:
            first = labels.narrow(axis, 0, 1)
            if labels.stride(axis) == 0 or bool((labels == first).all()):
                labels = first
    return labels


class Labels:
    """The union-find over labels, with what the trace learns about them."""

    def __init__(self) -> None:
        self._room = torch.arange(FIRST, device="cpu")
        self._parent = self._room
        self._flat = True  # every label's parent is its representative
        self.reasons: list[tuple[Tensor, str]] = []
        self.written: list[tuple[Tensor, Tensor]] = []
        self.drawn: list[tuple[Tensor, Tensor]] = []
        self.shared: list[Tensor] = []
        self._statistics: list[tuple[int, Tensor]] = []
        self.met: list[tuple[Tensor, Tensor]] = []

    @property
    def count(self) -> int:
        """How many labels there are, from zero on."""
        return self._parent.numel()

    def new(self, count: int) -> Tensor:
        """`count` fresh classes."""
        first = self.count
        fresh = torch.arange(first, first + count, device="cpu")
        if first + count > self._room.numel():  # doubled, so that each label moves once or so
            self._room = torch.cat([self._parent, fresh, torch.empty_like(self._parent)])
        self._parent = self._room[: first + count]
        self._parent[first:] = fresh
        return fresh

    def statistic(self, classes: Tensor) -> int:
        """A label for a number that is computed from several classes."""
        (label,) = self.new(1).tolist()
        self._statistics.append((label, classes))
        return int(label)

    @property
    def has_statistics(self) -> bool:
        """Whether any label stands for a number computed from several classes."""
        return bool(self._statistics)

    def is_statistic(self, labels: Tensor) -> Tensor:
        """True where a label stands for such a number."""
        if not self._statistics:
            return torch.zeros_like(labels, dtype=torch.bool)
        known = self._roots(torch.tensor([label for label, _ in self._statistics], device="cpu"))
        return torch.isin(self.find(labels), known)

    def sources(self, statistics: Tensor) -> Tensor:
        """The classes that numbers are computed from."""
        roots = self.of([statistics])
        found = [
            classes
            for label, classes in self._statistics
            if bool(torch.isin(self._roots(torch.tensor([label], device="cpu")), roots))
        ]
        return self.of(found)

    def inexact(self) -> Tensor:
        """Classes that share the statistics of a norm with others (rows of `shared`)."""
        found = []
        for rows in self.shared:
            roots = self.find(rows)
            is_class = roots >= FIRST
            several = (roots != roots.amax(dim=1, keepdim=True)).any(dim=1)
            found.append(roots[several][is_class[several]])
        return self.of(found)

    def find(self, labels: Tensor) -> Tensor:
        """The representative of each label; everything but classes stays as it is."""
        return torch.where(labels >= FIRST, self._roots(labels.clamp(min=0)), labels)

    def _roots(self, numbers: Tensor) -> Tensor:
        """The representatives of labels that are not below zero."""
        if not self._flat and numbers.numel() > MANY:  # else the way up is shorter for these alone
            while not torch.equal(above := self._parent[self._parent], self._parent):
                self._parent.copy_(above)
            self._flat = True
        found = self._parent[numbers]
        while not self._flat and not torch.equal(above := self._parent[found], found):
            found = above
        return found

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Make one class of each pair of classes that stand at the same position.

        The lowest label of a class stands for it. Every pair hooks the higher of its two
        representatives below the lower one, all pairs at once; where two pairs hook the same
        label, the lowest wins and the other is found again in the next round.
        """
        one, other = one.flatten(), other.flatten()
        while one.numel():
            a, b = self._roots(one), self._roots(other)
            if torch.equal(a, b):
                return
            apart = a != b
            one, other, a, b = one[apart], other[apart], a[apart], b[apart]
            self._parent.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            self._flat = False

    def refuse(self, labels: Tensor, reason: str) -> None:
        """Say why the classes among `labels` cannot be removed; the first reason is kept."""
        classes = distinct(labels[labels >= FIRST])
        if len(classes):
            self.reasons.append((classes, reason))

    def meet(
        self,
        one: Tensor,
        other: Tensor,
        operation: str,
        sizes: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    ) -> Tensor:
        """Labels of an element-wise operation on two operands.

        Args:
            one: labels of the one.
            other: labels of the other.
            operation: what brings them together, for the reasons.
            sizes: shapes of the operands themselves, where they may be broadcast: values that
                are the same for all channels leave them apart, whatever they are.
        """
        wide = tuple(broadcast(one.shape, other.shape))
        one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
        is_class, other_is_class = one >= FIRST, other >= FIRST
        whole, other_whole = bool(is_class.all()), bool(other_is_class.all())
        if whole and other_whole:
            self.unite(one, other)
            return one
        if whole or other_whole:  # with values of one kind, in a few steps
            classes, partner = (one, other) if whole else (other, one)
            least, most = (int(n) for n in partner.aminmax()) if partner.numel() else (0, 0)
            if least == most == CONSTANT:
                return classes
            if most < 0:
                self.meet_atoms(partner, classes)
                return classes
            if least == most == DATA:
                if _varies(sizes[1 if whole else 0], wide) or classes.numel() == 1:
                    self.refuse(classes, REFUSED.format(operation))
                return classes
        both = is_class & other_is_class
        spans = tuple(_spans(given, wide) for given in sizes)
        self.unite(one[both], other[both])
        for label, is_label, partner, place in (
            (one, is_class, other, spans[1]),
            (other, other_is_class, one, spans[0]),
        ):
            if bool((place > 0).any()) or label.numel() == 1:
                self.refuse(label[is_label & (partner == DATA)], REFUSED.format(operation))
            for kind, told in ((WRITTEN, self.written), (DRAWN, self.drawn)):
                beside = is_label & (partner == kind)
                if bool(beside.any()):
                    told.append(pairs_of(label[beside], place[beside]))
            atoms = is_label & (partner < 0)
            self.meet_atoms(partner[atoms], label[atoms])
        result = torch.where(is_class, one, other)
        neither = ~is_class & ~other_is_class
        data = neither & ((one == DATA) | (other == DATA) | ((one < 0) & (other < 0)))
        result = torch.where(neither & (one < 0), one, result)
        result = torch.where(neither & (other == CONSTANT), one, result)
        return torch.where(data, torch.full_like(result, DATA), result)

    def meet_atoms(self, atoms: Tensor, classes: Tensor) -> None:
        """Note that entries of parameters act on classes, pair by pair."""
        atoms, classes = atoms.flatten(), classes.flatten()
        if atoms.numel() > MANY:
            entries, classes = pairs_of(-1 - atoms, classes)
            atoms = -1 - entries
        if atoms.numel():
            self.met.append((atoms, classes))

    def column(self, labels: Tensor, axis: int, length: int, operation: str) -> Tensor:
        """One label per position along `axis`, when the same weight reads all other axes.

        Args:
            labels: labels of what is read.
            axis: the axis that the weight is laid along.
            length: length of that axis.
            operation: what reads, for the reasons.
        """
        rows = labels.movedim(axis, -1)
        rows = rows.reshape(-1, rows.shape[-1]).expand(-1, length)
        if len(rows) == 1:
            return rows[0]
        label = rows.amax(dim=0)
        is_class = label >= FIRST
        same = is_class & (rows >= FIRST)
        everywhere = label.expand_as(rows)
        self.unite(rows[same], everywhere[same])
        self.refuse(
            everywhere[is_class & (rows == DATA)],
            f"{operation} reads it together with values that no removable channel makes",
        )
        atoms = is_class & (rows < 0)
        self.meet_atoms(rows[atoms], everywhere[atoms])
        return label

    def merge(self, labels: Tensor, axes: Sequence[int], operation: str) -> Tensor:
        """Labels of an operation that mixes the positions along `axes`, kept with length 1.

        Fine while these positions belong to one class; classes that are mixed are refused.
        """
        mixed = sorted({x % labels.ndim for x in axes} if labels.ndim else set())
        rest = [a for a in range(labels.ndim) if a not in mixed]
        rows = self.find(labels).permute((*mixed, *rest)).reshape(
            math.prod(labels.shape[a] for a in mixed), -1
        )  # fmt: skip
        label = rows.amax(dim=0)
        is_class = label >= FIRST
        other = is_class & (rows != label) & ((rows >= FIRST) | (rows == DATA) | (rows < 0))
        bad = other.any(dim=0)
        self.refuse(rows[:, bad], f"{operation} mixes it with other values")
        constant = ~is_class & (rows != label).any(dim=0)
        label = torch.where(bad | constant | (label < 0), torch.full_like(label, DATA), label)
        shape = [1 if a in mixed else labels.shape[a] for a in range(labels.ndim)]
        return label.reshape(shape)

    def tied_down(self, *, drawn: bool = False) -> Tensor:
        """Classes that meet entries of a constant which others of their operation do not.

        A constant that all classes meet alike is the same for each of them and ties no width down.

        Args:
            drawn: of random numbers, not of what the code writes down.
        """
        found = []
        for classes, places in self.drawn if drawn else self.written:
            root, place = pairs_of(self.find(classes), places)
            each, counts = distinct_counts(root)
            alike = len(each) > 1 and bool((counts == len(distinct(place))).all())
            if not alike:
                found.append(each)
        return self.of(found)

    def of(self, parts: Iterable[Tensor]) -> Tensor:
        """The representatives among several label tensors, each once."""
        flat = [part.flatten() for part in parts]
        if not flat:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        return distinct(self.find(torch.cat(flat)))
