"""What counts as a batch, and what of it goes into the model."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.hints import Batch
from prunus.inputs import arguments, mapped, samples_of, tensors_of
from prunus.noise import passed
from prunus.rows import RowSet, row_hashes

__all__ = ["Batches", "call", "first_of", "to_device"]

# What code says of an input that it cannot take; a ValueError is passed on as it is.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)
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
        self._first: Any = None

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
            spent = (
                " It is an iterator, which is empty once it has been read: pass a list of batches "
                "or a data loader."
            )
            raise ValueError(
                f"`data` must hold at least one sample, got none.{spent * self.one_shot}"
            )

    def peek(self) -> Any:
        """The first batch, without losing it; read once, so that a loader's draws stay as few."""
        if self._first is None:
            iterator = iter(self)
            self._first = next(iterator)
            if self.one_shot:
                self._source = chain([self._first], iterator)
                self._spent = False
        return self._first


def _nothing(batch: Batch) -> bool:
    """True for a batch such as `()` or `{}`."""
    return isinstance(batch, list | tuple | Mapping) and len(batch) == 0


def size_of(batch: Batch) -> int | None:
    """Number of samples, or None where no tensor says it; see `samples_of`."""
    return samples_of(batch).size


def first_of(batch: Batch, rows: int) -> Any:
    """The first `rows` samples of a batch; the whole batch where it cannot be cut."""
    return samples_of(batch).take(slice(0, rows))


def parts(batch: Batch, rows: int = ROWS) -> Iterator[Any]:
    """A batch in pieces of at most `rows` samples, so that memory does not grow with its size.

    A batch that cannot be cut comes whole; see `samples_of`.
    """
    samples = samples_of(batch)
    if samples.mixed is not None or (samples.size or 1) <= rows:
        yield samples.batch
        return
    for start in range(0, samples.size or 1, rows):
        yield samples.take(slice(start, start + rows))


def to_device(batch: Batch, device: torch.device) -> Any:
    """A copy of the batch's tensors on `device`: a model may change its inputs in place."""

    def copied(tensor: Tensor) -> Tensor:
        if tensor.is_meta and device.type != "meta":
            raise ValueError(
                f"`data` must hold numbers, got a tensor of shape {tuple(tensor.shape)} on the "
                f"meta device, which has none. Make it on a device such as cpu."
            )
        return tensor.to(device, copy=True)

    return mapped(copied, batch)


def call(
    model: torch.nn.Module, batch: Batch, number: int | None = 0, *, whole: bool = True
) -> Any:
    """The model's output; a mapping gives keyword arguments, of a tuple the first is the input.

    Args:
        model: the network.
        batch: on its device.
        number: which of its data the batch is: what a network draws at random follows from it; see
            `prunus.noise`. None leaves it to the process's own state.
        whole: False where parts of the network may be left out.

    Raises:
        ValueError: the model cannot run on the batch; what it said is passed on.
    """
    args, kwargs = arguments(batch)

    def run() -> Any:
        return model(*args, **kwargs)

    try:
        return run() if number is None else passed(model, run, number, whole=whole)
    except (ValueError, *UNFIT) as error:
        lacking = _lacks_decoder(model, kwargs)
        if lacking:
            raise ValueError(lacking) from error
        if isinstance(error, ValueError) and not _of_torch(error):
            raise
        said = str(error).strip().splitlines()
        reason = said[0] if said and not isinstance(error, KeyError) else repr(error)
        raise ValueError(
            f"The model could not run on the data: {reason.rstrip('.')}. The input was "
            f"{_shown(args[0] if args else kwargs)}. {_advice(model, batch, kwargs, reason)}"
        ) from error


def _of_torch(error: Exception) -> bool:
    """Whether a layer of torch raised it, not the caller's code and not ours."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__")).startswith("torch.")


def _lacks_decoder(model: torch.nn.Module, given: Mapping[str, Any]) -> str | None:
    """What to add where an encoder and a decoder are given the encoder's inputs alone."""
    config = getattr(model, "config", None)
    known = any(key.startswith("decoder_") or key == "labels" for key in given)
    if known or not getattr(config, "is_encoder_decoder", False):
        return None
    start = getattr(config, "decoder_start_token_id", None)
    return (
        f"The model has a decoder, which the data give nothing to read: add `decoder_input_ids` to "
        f"each batch, {'a start token' if start is None else start} "
        f"(`config.decoder_start_token_id`) and then the tokens that it has written so far."
    )


def _shown(given: Any) -> str:
    if isinstance(given, Tensor):
        return f"shape {tuple(given.shape)}, dtype {given.dtype}, device {given.device}"
    return f"a {type(given).__name__}"


def _advice(model: torch.nn.Module, batch: Batch, kwargs: Mapping[str, Any], said: str) -> str:
    """What to pass instead: where the model takes several inputs, a mapping with their names."""
    if "saved tensor hooks" in said:
        return (
            "Its code takes derivatives by torch.func, beside which no others can be collected: "
            "take a recipe without gradients."
        )
    several = [
        name
        for name, p in inspect.signature(model.forward).parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(several) < 2 or kwargs:
        return "Give batches of the width, dtype and kind that `model(input)` takes."
    named = ", ".join(f"{name!r}: ..." for name in several)
    return (
        f"The model takes {len(several)} inputs, and of a tuple only the first element is the "
        f"input: pass each batch as a mapping, {{{named}}}."
    )


def _stored(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold a tensor's numbers; two where it is sparse."""
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    return [tensor if tensor.layout == torch.strided else tensor.to_dense()]


class Fingerprint:
    """A running hash of every number of the data, in order, and one of each sample."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._rows: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        """Take in one batch."""
        self._rows.append(row_hashes(batch))
        for tensor in tensors_of(batch):
            self._hash.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            for part in _stored(tensor.detach()):
                flat = part.cpu().contiguous().reshape(-1)
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
