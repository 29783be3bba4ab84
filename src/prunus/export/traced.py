"""A network as a graph that other engines read: plain tensors in, plain tensors out."""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import quiet
from prunus.export.check import ExportError, leaves, output_of, several
from prunus.hints import Batch
from prunus.inputs import arguments, mapped, samples_of

__all__ = ["Plain", "Trace", "batches_for", "silenced", "traced"]


class Plain(nn.Module):
    """A network with positional tensors as inputs and a tuple of tensors as output.

    Args:
        model: the network; caches of a language model are left out.
        batch: one batch; what of it is no tensor becomes part of the network.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        self.model = model
        positional, keywords = arguments(batch)
        parameters = [
            p.name
            for p in inspect.signature(model.forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        given: dict[str, Any] = dict(zip(parameters, positional, strict=False))
        self.places = tuple(
            key for key, value in {**given, **keywords}.items() if isinstance(value, Tensor)
        )
        self._fixed = {k: v for k, v in keywords.items() if not isinstance(v, Tensor)}
        config = getattr(model, "config", None)
        if getattr(config, "use_cache", False) and "use_cache" in parameters:
            self._fixed["use_cache"] = False
        self._positional = tuple(given)
        if len(given) != len(positional) or not all(isinstance(v, Tensor) for v in positional):
            raise ExportError(
                "Only tensors can be inputs of an exported network, and the example's positional "
                "input is something else. Give a mapping with the names of the inputs."
            )

    def tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """The inputs of a batch, in the order of `places`."""
        positional, keywords = arguments(batch)
        found = {**dict(zip(self._positional, positional, strict=True)), **keywords}
        return tuple(found[place] for place in self.places)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.places, tensors, strict=True))
        args = [given.pop(name) for name in self._positional]
        return tuple(leaves(self.model(*args, **given, **self._fixed)))


@dataclass(frozen=True, eq=False)
class Trace:
    """An exported program.

    Attributes:
        program: of torch.export.
        plain: what was exported.
        free: {input: axes along which it takes any length}.
        notes: which of them it does not.
    """

    program: Any
    plain: Plain
    free: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]


def traced(model: nn.Module, batch: Batch) -> Trace:
    """The program of a network: any number of samples and any length where it allows that.

    Raises:
        ExportError: torch.export cannot follow the network at all; it says why.
    """
    plain = Plain(model, batch).eval()
    samples = samples_of(batch)
    if samples.size == 1 and _runs(model, doubled := samples.take([0, 0])):
        batch, samples = doubled, samples_of(doubled)  # one sample would pass for a constant
    tensors = plain.tensors(batch)
    any_number = all(_runs(model, part) for part in several(batch))
    carrying = {
        place
        for place, tensor in zip(plain.places, tensors, strict=True)
        if any_number and tensor.ndim and tensor.shape[0] == samples.size
    }
    long = _sequences(plain, tensors)
    if not _runs(model, _halved(plain, batch, long)):
        long = set()
    said: list[str] = []
    for lengths in dict.fromkeys((bool(long), False)):
        wanted = tuple(
            {axis: torch.export.Dim.AUTO for axis, group in enumerate((carrying, long))
             if place in group and (lengths or axis == 0)}
            for place in plain.places
        )  # fmt: skip
        try:
            with silenced(), torch.no_grad():
                program = torch.export.export(
                    plain, tensors, dynamic_shapes=(wanted,), strict=False
                )
        except Exception as error:  # whatever the exporter says to code that it cannot follow
            said.append((str(error).strip().splitlines() or [type(error).__name__])[0])
            continue
        free = _free(program, plain.places)
        return Trace(program, plain, free, _notes(plain, tensors, free, samples.size))
    raise ExportError(
        f"torch.export cannot follow {type(model).__name__}: {said[0]}. Write another format, or "
        f"take what it names out of the forward."
    )


def _sequences(plain: Plain, tensors: Sequence[Tensor]) -> set[str]:
    """Inputs whose second axis counts positions.

    Token numbers, what has their samples and positions, and rows of vectors.
    """
    grids = {tuple(t.shape) for t in tensors if t.ndim == 2 and not t.is_floating_point()}
    return {
        place
        for place, tensor in zip(plain.places, tensors, strict=True)
        if tensor.ndim == 3 or tuple(tensor.shape[:2]) in grids
    }


def _halved(plain: Plain, batch: Batch, long: set[str]) -> Any:
    """The batch with half the positions."""
    given = dict(zip(plain.places, plain.tensors(batch), strict=True))
    half = {
        id(tensor): tensor[:, : max(2, tensor.shape[1] // 2)].contiguous()
        for place, tensor in given.items()
        if place in long
    }
    return mapped(lambda tensor: half.get(id(tensor), tensor), batch)


def _runs(model: nn.Module, batch: Batch) -> bool:
    """Whether the network itself takes a batch."""
    try:
        output_of(model, batch)
    except ValueError:
        return False
    return True


def _free(program: Any, places: Sequence[str]) -> dict[str, tuple[int, ...]]:
    wanted = set(program.graph_signature.user_inputs)
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    ]
    return {
        place: tuple(axis for axis, length in enumerate(shape) if not isinstance(length, int))
        for place, shape in zip(places, shapes, strict=True)
    }


def _notes(
    plain: Plain, tensors: Sequence[Tensor], free: Mapping[str, tuple[int, ...]], size: int | None
) -> tuple[str, ...]:
    found = []
    for place, tensor in zip(plain.places, tensors, strict=True):
        if tensor.ndim and tensor.shape[0] == size and 0 not in free[place]:
            found.append(f"It takes {size} samples at a time, no other number.")
        tokens = tensor.ndim == 2 and not tensor.is_floating_point()
        if tokens and 1 not in free[place]:
            found.append(f"`{place}` has the fixed length {tensor.shape[1]}.")
    return tuple(dict.fromkeys(found))


def batches_for(trace: Trace, batch: Batch) -> Iterator[Any]:
    """Batches of the numbers of samples and the lengths that a program takes."""
    samples = samples_of(batch)
    if any(0 in axes for axes in trace.free.values()):
        yield from several(batch)
    else:
        yield samples.take([0, 0]) if samples.size == 1 else batch
    long = {place for place, axes in trace.free.items() if 1 in axes}
    if long:
        yield _halved(trace.plain, batch, long)


@contextmanager
def silenced() -> Iterator[None]:
    """Without the exporter's log lines; what it refuses is raised, what matters is noted."""
    names = ("", "torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with quiet():
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
