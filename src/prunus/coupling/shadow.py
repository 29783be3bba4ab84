"""Labels behind every storage, so that views and in-place operations are exact by themselves.

A view shares its storage with what it looks at; whatever is read or written through it is read or
written in the one shadow of that storage. A shadow is kept as small as it can be: with its length
of 1 along axes on which labels are equal, as long as whole tensors are written; entry by entry once
an operation has written through a part.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from prunus.coupling.labels import CONSTANT, DATA, WRITTEN, narrowed

__all__ = ["Shadows", "carries", "geometry"]

Geometry = tuple[tuple[int, ...], tuple[int, ...], int]  # sizes, strides, offset


def carries(tensor: Tensor) -> bool:
    """True for real and complex numbers; whole numbers and truth values carry no channel."""
    return tensor.is_floating_point() or tensor.is_complex()


def geometry(tensor: Tensor) -> Geometry:
    """Sizes, strides and offset of a tensor in its storage."""
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


@dataclass(frozen=True, eq=False)
class Form:
    """Labels of a storage that one dense tensor fills.

    Attributes:
        sizes: lengths of the axes, outermost in memory first, without those of length 1.
        labels: labels by these axes, of length 1 along those on which they are equal.
        shape: of the tensor that fills it.
        given: its labels, by its own axes.
        known: labels of others that have been read.
    """

    sizes: tuple[int, ...]
    labels: Tensor
    shape: Geometry
    given: Tensor
    known: dict[Geometry, Tensor] = field(default_factory=dict)

    def read(self, shape: Geometry) -> Tensor:
        """Labels of a tensor that lies in this storage."""
        if shape == self.shape:
            return self.given
        if shape not in self.known:
            self.known[shape] = self._read(shape)
        return self.known[shape]

    def _read(self, shape: Geometry) -> Tensor:
        sizes, strides, offset = shape
        steps = [math.prod(self.sizes[a + 1 :]) for a in range(len(self.sizes))]
        varying = [a for a in range(len(self.sizes)) if self.labels.shape[a] > 1]
        if not varying:
            return self.labels.reshape((1,) * len(sizes))
        low = min(steps[a] for a in varying)
        high = max(steps[a] * self.sizes[a] for a in varying)
        moving = [b for b, n in enumerate(sizes) if n > 1 and strides[b] % high]
        inner = [b for b in moving if strides[b] < low]
        if offset % low + sum((sizes[b] - 1) * strides[b] for b in inner) < low:
            moving = [b for b in moving if b not in inner]  # never leaves an entry of labels
        at = torch.full((1,) * len(sizes), offset, device="cpu")
        for b in moving:
            line = torch.arange(sizes[b], device="cpu") * strides[b]
            at = at + line.reshape([-1 if i == b else 1 for i in range(len(sizes))])
        index = tuple((at // steps[a]) % self.sizes[a] for a in varying)
        return self.labels.reshape([n for n in self.labels.shape if n > 1])[index]

    def whole(self, entries: int) -> Tensor:
        """One label for each entry of the storage."""
        return self.labels.expand(self.sizes).reshape(-1).expand(entries).clone()


class Shadows:
    """The shadows of all storages that live."""

    def __init__(self, entries: int = 0) -> None:
        """`entries`: how many entries of parameters have labels of their own."""
        self._dense = torch.int32 if entries < 2**30 else torch.int64
        self._kept: dict[int, tuple[StorageWeakRef, int, Form | Tensor]] = {}
        self._sweep = 256

    def known(self, tensor: Tensor) -> bool:
        """True where something has been written behind the tensor's storage."""
        return tensor.untyped_storage()._cdata in self._kept

    def read(self, tensor: Tensor) -> Tensor | None:
        """Labels of a tensor; None where it sees the bytes of its storage as another type's.

        A storage that no operation has been seen to write holds constants of the model's code.
        """
        kept = self._kept.get(tensor.untyped_storage()._cdata)
        ones = (1,) * tensor.ndim
        if kept is None:
            fixed = WRITTEN if carries(tensor) and tensor.numel() > 1 else CONSTANT
            return torch.full(ones, fixed, device="cpu")
        _, itemsize, shadow = kept
        if itemsize != tensor.element_size():
            return None
        shape = geometry(tensor)
        if isinstance(shadow, Form):
            return shadow.read(shape)
        return narrowed(shadow.as_strided(*shape)).to(torch.int64)

    def everything(self, tensor: Tensor) -> Tensor:
        """All labels behind the tensor's storage."""
        kept = self._kept.get(tensor.untyped_storage()._cdata)
        if kept is None:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        shadow = kept[2]
        return shadow.labels if isinstance(shadow, Form) else shadow

    def write(self, tensor: Tensor, labels: Tensor) -> None:
        """Put labels (of length 1 where they are equal along an axis) behind a tensor."""
        if tensor.numel() == 0:
            return
        storage = tensor.untyped_storage()
        entries = storage.nbytes() // max(1, tensor.element_size())
        form = _filling(tensor, labels, entries)
        before = self._kept.get(storage._cdata)
        if before is not None:
            reference = before[0]
        else:
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        shadow = self._part(tensor, labels, entries, before) if form is None else form
        self._kept[storage._cdata] = (reference, tensor.element_size(), shadow)
        if len(self._kept) > self._sweep:
            self._forget()

    def _part(
        self,
        tensor: Tensor,
        labels: Tensor,
        entries: int,
        before: tuple[StorageWeakRef, int, Form | Tensor] | None,
    ) -> Tensor:
        if before is None or before[1] != tensor.element_size():
            flat = torch.full((entries,), DATA, dtype=self._dense, device="cpu")
        elif isinstance(before[2], Form):
            flat = before[2].whole(entries).to(self._dense)
        else:
            flat = before[2]
        flat.as_strided(*geometry(tensor)).copy_(labels.expand(tensor.shape))
        return flat

    def _forget(self) -> None:
        """Drop the shadows of storages that are gone."""
        alive = [k for k in self._kept.items() if not k[1][0].expired()]  # type: ignore[no-untyped-call]
        self._kept = dict(alive)
        self._sweep = max(256, 2 * len(self._kept))


def _filling(tensor: Tensor, labels: Tensor, entries: int) -> Form | None:
    """The labels as a form, where the tensor fills its storage without gaps or overlaps."""
    if tensor.storage_offset() or tensor.numel() != entries:
        return None
    shape = sizes, strides, _ = geometry(tensor)
    axes = [a for a, n in enumerate(sizes) if n > 1]
    axes.sort(key=strides.__getitem__, reverse=True)
    step = 1
    for a in reversed(axes):
        if strides[a] != step:
            return None
        step *= sizes[a]
    if labels.ndim < len(sizes):
        labels = labels.reshape((1,) * (len(sizes) - labels.ndim) + tuple(labels.shape))
    rest = [a for a in range(len(sizes)) if a not in axes]
    small = labels.permute((*axes, *rest)).reshape([labels.shape[a] for a in axes])
    return Form(tuple(sizes[a] for a in axes), small, shape, labels)
