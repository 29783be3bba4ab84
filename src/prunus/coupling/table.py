"""All classes of a finished trace by number: which slices they have, and which layers use them.

Labels are counted from zero, so that what is known of each is looked up in a line as long as all of
them; and numbers that come place by place, each in order, are sorted by merging these runs.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from prunus.coupling.labels import FIRST, ascending, distinct
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
    def _had(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What classes have: places, and uses by a number behind all places, and how often.

        Most parts have long runs of classes that follow one another. Classes between which no run
        begins or ends have the same, so that one stands for all of them.

        Returns:
            these and how often, by run and ascending in each; where every run begins; and the
            run of each class.
        """
        parts = [*(n for _, n in self.slots.values()), *self.uses.values()]
        numbers = torch.cat([self.roots[:0], *parts])
        lengths = torch.tensor([part.numel() for part in parts], dtype=torch.int64)
        ends = lengths.cumsum(0)
        new = torch.ones(numbers.numel() + 1, dtype=torch.bool)
        new[1:-1] = numbers[1:] != numbers[:-1] + 1
        new[ends] = True
        begins = torch.zeros(self.roots.numel() + 1, dtype=torch.bool)
        begins[numbers[new[:-1]]] = True
        begins[numbers[new[1:]] + 1] = True
        run = begins[:-1].cumsum(0) - 1
        first = begins[numbers].nonzero().flatten()
        part = torch.bucketize(first, ends, right=True)
        keys = run[numbers[first]] * max(1, len(parts)) + part
        pairs, often = torch.unique(keys, return_counts=True)
        owner = pairs.div(max(1, len(parts)), rounding_mode="floor")
        count = torch.bincount(owner)
        return pairs - owner * len(parts), often, count.cumsum(0) - count, run

    def uses_of(self, number: int) -> list[Use]:
        """The uses of a class, in order of execution."""
        had, _, begins, run = self._had
        at = int(run[number])
        following = int(begins[at + 1]) if at + 1 < begins.numel() else had.numel()
        names = list(self.uses)
        own = had[int(begins[at]) : following].tolist()
        return [names[i - len(self.slots)] for i in own if i >= len(self.slots)]

    def kinds(self, *flags: Tensor) -> Tensor:
        """Numbers that are equal for classes with as many slices everywhere and the same uses.

        What a class has is a list of (place, number of slices), ascending in the places.
        """
        had, often, begins, run = self._had
        pairs = list(zip(had.tolist(), often.tolist(), strict=True))
        known: dict[tuple[tuple[int, int], ...], int] = {}
        kind = [
            known.setdefault(tuple(pairs[begin:end]), len(known))
            for begin, end in pairwise([*begins.tolist(), len(pairs)])
        ]
        found = torch.tensor(kind, dtype=torch.int64)[run]
        for flag in flags:
            found = found * 2 + flag
        return found

    def lowest(self, place: Place) -> Tensor:
        """The lowest position of each class at a place."""
        index, numbers = self.slots[place]
        low = torch.full_like(self.roots, torch.iinfo(torch.int64).max)
        return low.scatter_reduce_(0, numbers, index, "amin")


def table_of(trace: LabelTrace) -> Table:
    """The classes of a trace that has run."""
    slots = settled(trace)
    uses = _uses(trace)
    every = [roots for _, roots in slots.values()] + list(uses.values())
    there = torch.zeros(trace.labels.count, dtype=torch.bool)
    named = torch.cat([torch.empty(0, dtype=torch.int64), *every])
    there[named] = True
    roots = there.nonzero().flatten()
    number = torch.empty(trace.labels.count, dtype=torch.int64)
    number[roots] = torch.arange(roots.numel())
    numbers = iter(torch.split(number[named], [own.numel() for own in every]))
    return Table(
        roots=roots,
        slots={place: (index, next(numbers)) for place, (index, _) in slots.items()},
        uses={use: next(numbers) for use in uses},
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
