"""Integer labels in place of activations, and the union-find that says which are one class.

A label tensor has as many axes as the activation it stands for; an axis along which all labels
are equal may have length 1, so that labels cost little where activations are large. Its entries are

    n >= 3        a channel class, up to the union-find
    CONSTANT      a value that no channel and no sample changes; it may meet anything
    DATA          a value that belongs to no class: inputs of the network, results of refused
                  operations; a class that is combined with it cannot be removed
    WRITTEN       a constant whose width the model's code writes down (padding, torch.zeros)
    n < 0         entry −n − 1 of the parameters that enter the computation as they are
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

CONSTANT, DATA, WRITTEN = 0, 1, 2
FIRST = 3


def distinct(labels: Tensor, dim: int | None = None) -> Tensor:
    """The values (or slices along `dim`) that occur, ascending."""
    found: Tensor = labels.unique(dim=dim)  # type: ignore[no-untyped-call]
    return found


def pairs_of(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs of non-negative numbers that stand at the same position."""
    base = int(other.max()) + 1 if other.numel() else 1
    keys = distinct(one.to(torch.int64) * base + other)
    return keys.div(base, rounding_mode="floor"), keys % base


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
        self._parent = torch.arange(FIRST, device="cpu")
        self.reasons: list[tuple[Tensor, str]] = []
        self.written: list[Tensor] = []
        self.inexact: list[Tensor] = []
        self.met: list[tuple[Tensor, Tensor]] = []

    def new(self, count: int) -> Tensor:
        """`count` fresh classes."""
        first = len(self._parent)
        fresh = torch.arange(first, first + count, device="cpu")
        self._parent = torch.cat([self._parent, fresh])
        return fresh

    def find(self, labels: Tensor) -> Tensor:
        """The representative of each label; everything but classes stays as it is."""
        return torch.where(labels >= FIRST, self._parent[labels.clamp(min=0)], labels)

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Make one class of each pair of classes that stand at the same position.

        The lowest label of a class stands for it. Every pair hooks the higher of its two
        representatives below the lower one, all pairs at once; where two pairs hook the same
        label, the lowest wins and the other is found again in the next round.
        """
        one, other = one.flatten(), other.flatten()
        while True:
            a, b = self._parent[one], self._parent[other]
            apart = a != b
            if not bool(apart.any()):
                return
            one, other, a, b = one[apart], other[apart], a[apart], b[apart]
            self._parent.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            while not torch.equal(above := self._parent[self._parent], self._parent):
                self._parent = above

    def refuse(self, labels: Tensor, reason: str) -> None:
        """Say why the classes among `labels` cannot be removed; the first reason is kept."""
        classes = distinct(labels[labels >= FIRST])
        if len(classes):
            self.reasons.append((classes, reason))

    def meet(self, one: Tensor, other: Tensor, operation: str) -> Tensor:
        """Labels of an element-wise operation on two operands."""
        one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
        is_class, other_is_class = one >= FIRST, other >= FIRST
        both = is_class & other_is_class
        self.unite(one[both], other[both])
        for label, is_label, partner in ((one, is_class, other), (other, other_is_class, one)):
            self.refuse(
                label[is_label & (partner == DATA)],
                f"{operation} combines it with values that no removable channel makes",
            )
            beside = label[is_label & (partner == WRITTEN)]
            if len(beside):
                self.written.append(distinct(beside))
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
        if atoms.numel():
            entries, labels = pairs_of(-1 - atoms.flatten(), classes.flatten())
            self.met.append((entries, labels))

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

    def of(self, parts: Iterable[Tensor]) -> Tensor:
        """The representatives among several label tensors, each once."""
        flat = [part.flatten() for part in parts]
        if not flat:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        return distinct(self.find(torch.cat(flat)))
