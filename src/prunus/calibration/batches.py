"""What counts as a batch, and what of it goes into the model."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.rows import RowSet, row_hashes

__all__ = ["Batches", "call", "first_of", "to_device"]

ROWS = 1024  # rows of one batch that go through the model at a time


class Batches:
    """Data as a sequence of batches: one batch, or any iterable of them.

    A Tensor, an array, a tuple or a Mapping is one batch. A one-shot iterator can be read once.
    """

    def __init__(self, data: Any) -> None:
        if isinstance(data, Batches):
            self.__dict__ = data.__dict__  # the same data, read or not
            return
        if data is None:
            raise ValueError("`data` must be batches, got None. Pass a tensor or a data loader.")
        single = isinstance(data, Tensor | tuple | Mapping | np.ndarray)
        if not single and not isinstance(data, Iterable):
            raise TypeError(
                f"`data` must be a batch (tensor, tuple, mapping) or an iterable of batches, got "
                f"{type(data).__name__}."
            )
        self._source: Iterable[Any] = [data] if single else data
        self.one_shot = isinstance(self._source, Iterator)
        self._spent = False

    def __iter__(self) -> Iterator[Any]:
        if self.one_shot and self._spent:
            raise ValueError(
                "`data` is an iterator that can be read only once, and this recipe needs several "
                "passes. Pass a list of batches or a data loader."
            )
        self._spent = True
        empty = True
        for batch in self._source:
            if size_of(batch) != 0 and not _nothing(batch):
                empty = False
                yield batch
        if empty:
            raise ValueError("`data` must hold at least one sample, got none.")

    def peek(self) -> Any:
        """The first batch, without losing it."""
        iterator = iter(self)
        first = next(iterator)
        if self.one_shot:
            self._source = chain([first], iterator)
            self._spent = False
        return first


def _nothing(batch: Any) -> bool:
    """True for a batch such as `()` or `{}`."""
    return isinstance(batch, list | tuple | Mapping) and len(batch) == 0


def mapped(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """The batch with every tensor (or array, taken as one) changed, in its tuples and mappings."""
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: mapped(change, value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple
        return type(batch)(*(mapped(change, part) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(mapped(change, part) for part in batch)
    return batch


def as_tensors(batch: Any) -> Any:
    """The batch with arrays turned into tensors."""
    return mapped(lambda tensor: tensor, batch)


def size_of(batch: Any) -> int | None:
    """Number of samples, or None where no tensor says it."""
    tensors = _tensors(batch)
    return None if not tensors else int(tensors[0].shape[0]) if tensors[0].ndim else 1


def first_of(batch: Any, rows: int) -> Any:
    """The first `rows` samples of a batch."""
    return _rows(batch, 0, rows)


def parts(batch: Any, rows: int = ROWS) -> Iterator[Any]:
    """A batch in pieces of at most `rows` samples, so that memory does not grow with its size."""
    batch = as_tensors(batch)
    tensors = _tensors(batch)
    sizes = {int(t.shape[0]) if t.ndim else -1 for t in tensors}
    if len(sizes) != 1 or -1 in sizes or max(sizes) <= rows:
        yield batch
        return
    for start in range(0, max(sizes), rows):
        yield _rows(batch, start, start + rows)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch's tensors on `device`."""
    return mapped(lambda tensor: tensor.to(device), batch)


def call(model: torch.nn.Module, batch: Any) -> Any:
    """The model's output; a mapping gives keyword arguments, of a tuple the first is the input.

    Raises:
        ValueError: the model cannot run on the batch; what it said is passed on.
    """
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    try:
        return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    except (RuntimeError, TypeError, IndexError) as error:
        shown = (
            f"shape {tuple(inputs.shape)}, dtype {inputs.dtype}, device {inputs.device}"
            if isinstance(inputs, Tensor)
            else f"a {type(inputs).__name__}"
        )
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"The model could not run on the data: {reason}. The input was {shown}. "
            f"Give batches of the width, dtype and kind that `model(input)` takes."
        ) from error


def attention_mask(batch: Any) -> Tensor | None:
    """The batch's `attention_mask` as booleans (batch, positions), or None."""
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None:
        return None
    if mask.ndim != 2:
        raise ValueError(
            f"`attention_mask` must be (batch, positions), 0 for padding, got shape "
            f"{tuple(mask.shape)}. Leave other masks to the model's own arguments."
        )
    result: Tensor = mask.bool()
    return result


class Fingerprint:
    """A running hash of every number of the data, in order, and one of each sample."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._rows: list[Tensor] = []

    def add(self, batch: Any) -> None:
        """Take in one batch."""
        self._rows.append(row_hashes(batch))
        for tensor in _tensors(batch):
            self._hash.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                self._hash.update(flat.view(torch.uint8).numpy().data)

    @property
    def value(self) -> str:
        """Sixteen hexadecimal digits."""
        return self._hash.hexdigest()[:16]

    @property
    def rows(self) -> RowSet:
        """The samples taken in, whatever their batches and order."""
        return RowSet.of(self._rows)


def _tensors(batch: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(note, batch)
    return found


def _rows(batch: Any, start: int, stop: int) -> Any:
    return mapped(lambda tensor: tensor[start:stop] if tensor.ndim else tensor, batch)
