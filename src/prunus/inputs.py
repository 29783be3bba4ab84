"""How a batch is read: what of it goes into the model, and which of its tensors count samples."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.hints import Batch

__all__ = ["Samples", "arguments", "as_tensors", "mapped", "samples_of", "tensors_of"]

Path = tuple[Any, ...]


def arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments that a batch stands for.

    Of a tuple or list the first element is the input. An input that is a mapping gives keyword
    arguments; any other, a pair too, is one positional argument. Arrays are given as tensors.
    """
    inputs = as_tensors(_input(batch))
    if isinstance(inputs, Mapping):
        return (), {str(key): value for key, value in inputs.items()}
    return (inputs,), {}


def _input(batch: Batch) -> Any:
    return batch[0] if isinstance(batch, tuple | list) and len(batch) else batch


def mapped(change: Callable[[Tensor], Tensor], batch: Batch) -> Any:
    """The batch with every tensor changed, in its tuples, mappings and data classes.

    An array is taken as a tensor. Mappings become plain dictionaries.
    """
    return _walk(lambda path, tensor: change(tensor), batch, ())


def as_tensors(batch: Batch) -> Any:
    """The batch with arrays turned into tensors."""
    return mapped(lambda tensor: tensor, batch)


def tensors_of(batch: Batch) -> list[Tensor]:
    """All tensors of a batch, in order."""
    return list(_leaves(batch).values())


def _leaves(batch: Batch) -> dict[Path, Tensor]:
    found: dict[Path, Tensor] = {}

    def note(path: Path, tensor: Tensor) -> Tensor:
        found[path] = tensor
        return tensor

    _walk(note, batch, ())
    return found


def _walk(change: Callable[[Path, Tensor], Any], value: Any, path: Path) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufc":
            return value  # names and objects
        value = torch.from_numpy(value if value.flags.writeable else value.copy())
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, Mapping):
        return {key: _walk(change, part, (*path, key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_walk(change, part, (*path, i)) for i, part in enumerate(value)]
        if hasattr(value, "_fields"):  # a named tuple
            return type(value)(*parts)
        return tuple(parts) if isinstance(value, tuple) else parts
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        other = copy.copy(value)
        for field in dataclasses.fields(value):
            part = _walk(change, getattr(value, field.name), (*path, field.name))
            object.__setattr__(other, field.name, part)
        return other
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Which parts of a batch count samples along their first axis; see `samples_of`.

    Attributes:
        batch: the batch, with arrays as tensors.
        size: number of samples, or None where no tensor says it.
        tensors: paths of the tensors whose first axis counts samples.
        lists: paths of the lists with one entry for each sample.
        mixed: why the batch cannot be cut, or None.
    """

    batch: Batch
    size: int | None
    tensors: frozenset[Path] = frozenset()
    lists: frozenset[Path] = frozenset()
    mixed: str | None = None

    def take(self, index: slice | Sequence[int]) -> Any:
        """The batch with these samples; whole where it cannot be cut."""
        if self.mixed is not None or self.size is None:
            return self.batch

        def cut(path: Path, tensor: Tensor) -> Tensor:
            if path not in self.tensors:
                return tensor
            return tensor[index] if isinstance(index, slice) else tensor[list(index)]

        return _cut_lists(_walk(cut, self.batch, ()), self.lists, index, ())


def samples_of(batch: Batch) -> Samples:
    """Find what of a batch counts samples.

    Samples stand along the first axis. Their number is the first length that most tensors share,
    the model's inputs before all others; a tie goes to the tensor with more axes, then to real
    numbers. Tensors of another first length are constants and stay whole where they cannot count
    samples: numbers without an axis, a first length of 1, and masks over positions (square, as
    long as a second axis of the inputs). Where the evidence is not clear the batch is not cut at
    all, but runs whole: an input that is square in its first two axes beside another one (the
    adjacency of a graph beside its nodes), sparse or nested tensors, a list among the inputs (of
    images, or of levels?), and any other first length. Lists of strings and the like, and lists of
    targets, are cut with the rest where they have one entry for each sample.
    """
    batch = as_tensors(batch)
    leaves = _leaves(batch)
    if not leaves:
        return Samples(batch, None)
    first: Path = (0,) if isinstance(batch, tuple | list) else ()
    inputs = {p: t for p, t in leaves.items() if p[: len(first)] == first} or leaves
    size = _votes(inputs, leaves)
    if size is None:
        return Samples(batch, 1)
    positions = {length for t in inputs.values() for length in t.shape[1:2]}
    carrying = {p for p, t in leaves.items() if t.ndim and t.shape[0] == size}
    lists = _lists(batch, size, carrying, first)
    inside = {p for p in leaves if any(p[: len(at)] == at for at in lists)}
    mixed = None
    for path, tensor in leaves.items():
        shown = f"{_shown(path)} of shape {tuple(tensor.shape)}"
        if path in inside:
            continue
        if tensor.layout != torch.strided or tensor.is_nested:
            mixed = f"{_shown(path)} is sparse or nested"
        elif path in inputs and _among_lists(batch, path, first):
            mixed = f"{_shown(path)} stands in a list"
        elif path not in carrying:
            square = tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] in positions
            if tensor.ndim and tensor.shape[0] != 1 and not square:
                mixed = f"{shown} does not have {size} samples"
        elif path in inputs and len(inputs) > 1 and tensor.shape[:2] == (size, size):
            mixed = f"{shown} may be square over the samples"
    return Samples(batch, size, frozenset(carrying - inside), frozenset(lists), mixed)


def _votes(inputs: Mapping[Path, Tensor], leaves: Mapping[Path, Tensor]) -> int | None:
    """The first length that counts samples."""
    dense = [t for t in inputs.values() if t.ndim]
    if not dense:
        dense = [t for t in leaves.values() if t.ndim]
    if not dense:
        return None
    own = Counter(t.shape[0] for t in dense)
    every = Counter(t.shape[0] for t in leaves.values() if t.ndim)

    def rank(place: int) -> tuple[int, int, int, bool, int]:
        t = dense[place]
        return own[t.shape[0]], every[t.shape[0]], t.ndim, t.is_floating_point(), -place

    return int(dense[max(range(len(dense)), key=rank)].shape[0])


def _lists(batch: Batch, size: int, carrying: set[Path], first: Path) -> set[Path]:
    """Lists with one entry for each sample whose entries do not count samples themselves."""
    found: set[Path] = set()

    def look(value: Any, path: Path) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                look(part, (*path, key))
        elif isinstance(value, list | tuple):
            own = [(*path, *p) for p in _leaves(value)]
            target = not own or path[: len(first)] != first
            apart = target and not (own and all(p in carrying for p in own))
            if isinstance(value, list) and path and len(value) == size and apart:
                found.add(path)
                return
            for i, part in enumerate(value):
                look(part, (*path, i))

    look(batch, ())
    return found


def _cut_lists(value: Any, lists: frozenset[Path], index: slice | Sequence[int], path: Path) -> Any:
    if path in lists:
        return value[index] if isinstance(index, slice) else [value[i] for i in index]
    if isinstance(value, dict):
        return {k: _cut_lists(part, lists, index, (*path, k)) for k, part in value.items()}
    if isinstance(value, list | tuple) and lists:
        parts = [_cut_lists(part, lists, index, (*path, i)) for i, part in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def _among_lists(batch: Batch, path: Path, first: Path) -> bool:
    """Whether a list, but for the batch itself, stands between an input and the batch."""
    value: Any = batch
    for depth, key in enumerate(path):
        if isinstance(value, list) and depth >= len(first):
            return True
        value = getattr(value, key) if dataclasses.is_dataclass(value) else value[key]
    return False


def _shown(path: Path) -> str:
    return "the input" if not path else "[" + "][".join(repr(key) for key in path) + "]"
