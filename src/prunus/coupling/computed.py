"""Values computed from parameters alone, entry by entry, as labels that remember the entries.

1 + γ of a norm, or a table of positions plus one of classes: each value comes from entries of one
or two parameters. It has a number of its own behind those of all entries, and what meets it has met
them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.coupling.labels import pairs_of

__all__ = ["Computed"]


class Computed:
    """Numbers of computed values, from `first` on; a value's label is −number − 1."""

    def __init__(self, first: int) -> None:
        self._first = self._next = first
        self._values: list[Tensor] = []
        self._entries: list[Tensor] = []

    def of(self, one: Tensor, other: Tensor | None = None) -> Tensor:
        """Labels of what is computed from one label each, or from two at the same position."""
        if other is None:
            numbers, place = torch.unique(-1 - one, return_inverse=True)
            parts = [numbers]
        else:
            base = int((-1 - other).max()) + 1
            keys, place = torch.unique((-1 - one) * base + (-1 - other), return_inverse=True)
            parts = [keys.div(base, rounding_mode="floor"), keys % base]
        new = self._next + torch.arange(len(parts[0]), device="cpu")
        self._next += len(new)
        for numbers in parts:
            values, entries = self.expanded(new, numbers)
            self._values.append(values)
            self._entries.append(entries)
        labels: Tensor = -1 - new[place]
        return labels

    def expanded(self, partner: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of partners and entries of parameters, where numbers may be computed values'."""
        computed = numbers >= self._first
        if not bool(computed.any()):
            return partner, numbers
        values, entries = torch.cat(self._values), torch.cat(self._entries)
        order = torch.argsort(values, stable=True)
        values, entries = values[order], entries[order]
        own, who = numbers[computed], partner[computed]
        low = torch.searchsorted(values, own)
        count = torch.searchsorted(values, own, right=True) - low
        at = torch.repeat_interleave(low, count)
        start = torch.repeat_interleave(count.cumsum(0) - count, count)
        at = at + torch.arange(len(at), device="cpu") - start
        return (
            torch.cat([partner[~computed], torch.repeat_interleave(who, count)]),
            torch.cat([numbers[~computed], entries[at]]),
        )

    def met(self, parts: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Entries by number, ascending, and the classes that they act on; part by part.

        Args:
            parts: labels of entries, or of values computed from them, and the classes beside them.
        """
        if not parts:
            return []
        numbers = -1 - torch.cat([atoms for atoms, _ in parts])
        classes = torch.cat([own for _, own in parts])
        lengths = [atoms.numel() for atoms, _ in parts]
        apart = list(zip(torch.split(numbers, lengths), torch.split(classes, lengths), strict=True))
        falls = numbers[1:] <= numbers[:-1]
        falls[torch.tensor(lengths).cumsum(0)[:-1] - 1] = False  # from one part to the next
        if int(numbers.max()) < self._first and not bool(falls.any()):
            return apart
        found = []
        for own, beside in apart:
            beside, own = self.expanded(beside, own)
            found.append(pairs_of(own, beside))
        return found
