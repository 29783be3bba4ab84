"""Channels that the code takes apart into equal parts, which must therefore keep equal counts.

`chunk`, `split` into equal lengths, halves by slicing and a view that turns one axis into several
cut at fractions of the width. After a removal the cuts fall where they should only if every part
has lost as many channels. Two ways keep that: whole parts go (heads of an attention), or the
channels at the same place in all parts go together (halves of a block, groups of a shuffle). Where
neither has come about by itself, the second is made.
"""

import math
from collections.abc import Callable

from torch import Tensor

from prunus.coupling.labels import FIRST, Labels
from prunus.coupling.shadow import geometry

__all__ = ["Parts", "settle_parts"]

SPLITS = ("split", "split_with_sizes", "chunk", "tensor_split", "unbind")
VIEWS = ("view", "_unsafe_view", "_reshape_alias", "unflatten", "reshape")
Read = Callable[[Tensor], Tensor]


class Parts:
    """Notes the ways in which views take axes of channels apart.

    Attributes:
        found: labels as (parts, places) for each of them.
    """

    def __init__(self, read: Read) -> None:
        """`read` gives a tensor's labels."""
        self.found: list[Tensor] = []
        self._read = read
        self._halves: dict[tuple[object, ...], int] = {}

    def look(self, name: str, whole: Tensor, views: list[Tensor]) -> None:
        """Take in one view operation, by its name without its name space."""
        if name in SPLITS and len(views) > 1:
            self.found += _of_split(whole, views, self._read)
        elif name == "slice" and len(views) == 1:
            self._slice(whole, views[0])
        elif name in VIEWS and len(views) == 1 and whole.shape != views[0].shape:
            self.found += _of_reshape(whole, views[0], self._read)

    def _slice(self, whole: Tensor, part: Tensor) -> None:
        """Halves count once both have been taken."""
        axis = next((a for a in range(whole.ndim) if part.shape[a] != whole.shape[a]), None)
        if axis is None or 2 * part.shape[axis] != whole.shape[axis]:
            return
        step = whole.stride(axis) * part.shape[axis]
        begins = int(part.storage_offset()) - int(whole.storage_offset())
        if part.stride(axis) != whole.stride(axis) or begins not in (0, step):
            return  # every second one, or a part from the middle
        key = (whole.untyped_storage()._cdata, *geometry(whole), axis)
        other = self._halves.setdefault(key, begins)
        if other != begins:
            self.found += _along(whole, axis, 2, self._read)


def _of_split(whole: Tensor, outputs: list[Tensor], read: Read) -> list[Tensor]:
    if outputs[0].ndim != whole.ndim:
        return []  # unbind: what is one channel stays one
    axis = next((a for a in range(whole.ndim) if outputs[0].shape[a] != whole.shape[a]), None)
    if axis is None or len({part.shape[axis] for part in outputs}) != 1:
        return []
    return _along(whole, axis, len(outputs), read)


def _of_reshape(whole: Tensor, view: Tensor, read: Read) -> list[Tensor]:
    labels = None
    found = []
    for before, after in _matched(tuple(whole.shape), tuple(view.shape)):
        sizes = [view.shape[b] for b in after]
        if not before or sum(n > 1 for n in sizes) < 2:
            continue
        labels = read(whole) if labels is None else labels
        if all(labels.shape[a] == 1 for a in before):
            continue
        rest = [a for a in range(whole.ndim) if a not in before]
        wide = [whole.shape[a] if a in before else labels.shape[a] for a in range(whole.ndim)]
        flat = labels.expand(wide).permute((*before, *rest)).reshape(math.prod(sizes), -1)
        for k in range(1, len(sizes)):
            parts = math.prod(sizes[:k])
            if 1 < parts < math.prod(sizes):
                found.append(flat.reshape(parts, -1))
    return found


def _along(whole: Tensor, axis: int, parts: int, read: Read) -> list[Tensor]:
    labels = read(whole).movedim(axis, 0)
    if labels.shape[0] == 1:
        return []
    return [labels.reshape(parts, -1)]


def _matched(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Axes of two shapes of as many entries, in the smallest runs that hold equally many."""
    runs = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i][: len(before) - i], [j][: len(after) - j]
        here = math.prod(before[a] for a in left)
        there = math.prod(after[b] for b in right)
        while here != there:
            if here < there:
                left.append(left[-1] + 1 if left else i)
                here *= before[left[-1]]
            else:
                right.append(right[-1] + 1 if right else j)
                there *= after[right[-1]]
        i, j = i + len(left), j + len(right)
        runs.append((left, right))
    return runs


def settle_parts(labels: Labels, parts: list[Tensor]) -> None:
    """Make one class of what stands at the same place in all parts, where it has to be."""
    for own in parts:
        roots = labels.find(own)
        is_class = roots >= FIRST
        if not bool(is_class.any()):
            continue
        if bool((roots == roots[:, :1]).all()) or bool((roots == roots[:1]).all()):
            continue
        high = roots.amax(dim=0).expand_as(roots)
        labels.unite(roots[is_class], high[is_class])
        labels.refuse(
            high[~is_class],
            "it is one of several equal parts, of which another has no removable channels",
        )
