"""Integer labels in place of activations, and the union-find that says which are one class.

A label tensor has the shape of the activation it stands for. Its entries are

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


class Labels:
    """The union-find over labels, with what the walk learns about them."""

    def __init__(self) -> None:
        self._parent = torch.arange(FIRST)
        self.reasons: list[tuple[Tensor, str]] = []
        self.written: list[Tensor] = []
        self.inexact: list[Tensor] = []
        self.atoms: list[tuple[str, torch.Size, int]] = []
        self.met: list[tuple[Tensor, Tensor]] = []

    def new(self, count: int) -> Tensor:
        """`count` fresh classes."""
        first = len(self._parent)
        fresh = torch.arange(first, first + count)
        self._parent = torch.cat([self._parent, fresh])
        return fresh

    def atom(self, name: str, shape: torch.Size) -> Tensor:
        """Labels for the entries of a parameter that is used as it is."""
        offset = sum(math.prod(known) for _, known, _ in self.atoms)
        self.atoms.append((name, shape, offset))
        return -1 - torch.arange(offset, offset + math.prod(shape)).reshape(shape)

    def find(self, labels: Tensor) -> Tensor:
        """The representative of each label; everything but classes stays as it is."""
        roots = labels.clamp(min=0)
        while not torch.equal(above := self._parent[roots], roots):
            roots = above
        return torch.where(labels >= FIRST, roots, labels)

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Make one class of each pair of classes that stand at the same position."""
        pairs = torch.stack([self.find(one).flatten(), self.find(other).flatten()], dim=1)
        pairs = distinct(pairs[pairs[:, 0] != pairs[:, 1]], dim=0)
        for a, b in pairs.tolist():
            low, high = sorted((self._root(a), self._root(b)))
            self._parent[high] = low

    def _root(self, label: int) -> int:
        while (above := int(self._parent[label])) != label:
            label = above
        return label

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
            self.written.append(distinct(label[is_label & (partner == WRITTEN)]))
            atoms = is_label & (partner < 0)
            self._met(partner[atoms], label[atoms])
        result = torch.where(is_class, one, other)
        neither = ~is_class & ~other_is_class
        data = neither & ((one == DATA) | (other == DATA) | ((one < 0) & (other < 0)))
        result = torch.where(neither & (one < 0), one, result)
        result = torch.where(neither & (other == CONSTANT), one, result)
        return torch.where(data, torch.full_like(result, DATA), result)

    def _met(self, atoms: Tensor, classes: Tensor) -> None:
        if atoms.numel():
            pairs = distinct(torch.stack([atoms.flatten(), classes.flatten()]), dim=1)
            self.met.append((pairs[0], pairs[1]))

    def column(self, labels: Tensor, axis: int, operation: str) -> Tensor:
        """One label per position along `axis`, when the same weight reads all other axes.

        Classes that stand at the same position for different samples or places become one.
        """
        rows = labels.movedim(axis, -1).reshape(-1, labels.shape[axis])
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
        self._met(rows[atoms], everywhere[atoms])
        return label

    def merge(self, labels: Tensor, axes: Sequence[int], operation: str) -> Tensor:
        """Labels of an operation that mixes the positions along `axes`, kept with length 1.

        Fine while these positions belong to one class; classes that are mixed are refused.
        """
        rest = [a for a in range(labels.ndim) if a not in {x % labels.ndim for x in axes}]
        mixed = sorted({x % labels.ndim for x in axes})
        rows = self.find(labels).permute(*mixed, *rest).reshape(
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
        return distinct(self.find(torch.cat(flat))) if flat else torch.empty(0, dtype=torch.long)
