"""All classes of a finished trace by number: which slices they have, and which layers use them.

Labels are counted from zero, so that what is known of each is looked up in a line as long as all of
them; and numbers that come place by place, each in order, are sorted by merging these runs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from prunus.coupling.labels import FIRST, ascending, distinct, in_order
from prunus.coupling.members import Place, settled
from prunus.coupling.trace import LabelTrace

__all__ = ["Table", "Use", "table_of"]

Use = tuple[str, str]  # kind, module


@dataclass(frozen=True, eq=False)
class Table:
    """All classes by number, ascending in their labels.

    Attributes:
        roots: the label of each.
        slots: positions and numbers of classes of every place.
        uses: numbers of the classes of every use, in order of execution.
    """

    roots: Tensor
    slots: dict[Place, tuple[Tensor, Tensor]]
    uses: dict[Use, Tensor]

    def marked(self, labels: Tensor) -> Tensor:
        """True for the classes among representative labels."""
        if not labels.numel():
            return torch.zeros_like(self.roots, dtype=torch.bool)
        return torch.isin(self.roots, labels)

    @cached_property
    def _had(self) -> tuple[Tensor, Tensor, Tensor]:
        """What each class has: a place, or a use by a number behind all places, and how often.

        Returns:
            these and how often, by class and ascending in each, and where every class begins.
        """
        parts = [*(n for _, n in self.slots.values()), *self.uses.values()]
        numbers = torch.cat([self.roots[:0], *parts])
        lengths = torch.tensor([part.numel() for part in parts], dtype=torch.int64)
        part = torch.arange(len(parts)).repeat_interleave(lengths)
        order = in_order(numbers)
        pairs, often = torch.unique_consecutive(
            numbers[order] * max(1, len(parts)) + part[order], return_counts=True
        )
        owner = pairs.div(max(1, len(parts)), rounding_mode="floor")
        count = torch.bincount(owner, minlength=self.roots.numel())
        return pairs - owner * len(parts), often, torch.cat([count[:0], count.cumsum(0) - count])

    def uses_of(self, number: int) -> list[Use]:
        """The uses of a class, in order of execution."""
        had, _, begins = self._had
        following = int(begins[number + 1]) if number + 1 < begins.numel() else had.numel()
        names = list(self.uses)
        own = had[int(begins[number]) : following].tolist()
        return [names[i - len(self.slots)] for i in own if i >= len(self.slots)]

    def kinds(self, *flags: Tensor) -> Tensor:
        """Numbers that are equal for classes with as many slices everywhere and the same uses.

        What a class has is a list of (place, number of slices), ascending in the places.
        """
        kind = torch.zeros_like(self.roots)
        for flag in flags:
            kind = kind * 2 + flag
        had, often, begins = self._had
        if not had.numel():
            return kind
        tokens = had * (int(often.max()) + 1) + often
        count = torch.cat([begins[1:], torch.tensor([had.numel()])]) - begins
        found, following = torch.empty_like(kind), 0
        for length in distinct(count).tolist():
            same = (count == length).nonzero().flatten()
            own = tokens[begins[same, None] + torch.arange(length)]
            at = _alike(torch.cat([kind[same, None], own], 1))
            found[same] = following + at
            following += int(at.max()) + 1
        return found

    def lowest(self, place: Place) -> Tensor:
        """The lowest position of each class at a place."""
        index, numbers = self.slots[place]
        low = torch.full_like(self.roots, torch.iinfo(torch.int64).max)
        return low.scatter_reduce_(0, numbers, index, "amin")


def _alike(rows: Tensor) -> Tensor:
    """Numbers that are equal for equal rows of whole numbers."""
    other = (rows[1:] != rows[:-1]).any(1)  # classes beside each other are mostly alike
    first = torch.cat([torch.ones_like(other[:1]), other]) if len(rows) > 1 else other.new_ones(1)
    whole = np.ascontiguousarray(rows[first].numpy())
    each = whole.view(np.dtype((np.void, whole.itemsize * whole.shape[1]))).flatten()
    return torch.from_numpy(np.unique(each, return_inverse=True)[1])[first.cumsum(0) - 1]


def table_of(trace: LabelTrace) -> Table:
    """The classes of a trace that has run."""
    slots = settled(trace)
    uses = _uses(trace)
    every = [roots for _, roots in slots.values()] + list(uses.values())
    there = torch.zeros(trace.labels.count, dtype=torch.bool)
    there[torch.cat([torch.empty(0, dtype=torch.int64), *every])] = True
    roots = there.nonzero().flatten()
    number = torch.empty(trace.labels.count, dtype=torch.int64)
    number[roots] = torch.arange(roots.numel())
    return Table(
        roots=roots,
        slots={place: (index, number[own]) for place, (index, own) in slots.items()},
        uses={use: number[own] for use, own in uses.items()},
    )


def _uses(trace: LabelTrace) -> dict[Use, Tensor]:
    """The representatives that every use touches, each once and ascending."""
    gathered: dict[Use, list[Tensor]] = {}
    for kind, name, touched in trace.layers:
        gathered.setdefault((kind, name), []).append(touched.flatten())
    if not gathered:
        return {}
    lengths = torch.tensor([sum(p.numel() for p in parts) for parts in gathered.values()])
    roots = trace.labels.find(torch.cat([p for parts in gathered.values() for p in parts]))
    use = torch.arange(lengths.numel()).repeat_interleave(lengths)
    keys = (use * trace.labels.count + roots)[roots >= FIRST]
    if not ascending(keys, strictly=True):
        keys = distinct(keys)
    use = keys.div(trace.labels.count, rounding_mode="floor")
    parts = torch.split(
        keys - use * trace.labels.count, torch.bincount(use, minlength=len(gathered)).tolist()
    )
    return dict(zip(gathered, parts, strict=True))
