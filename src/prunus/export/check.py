"""Outputs of what was written, held against those of what was to be written."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.calibration.batches import call
from prunus.export.answer import Check
from prunus.hints import Batch
from prunus.inputs import arguments, samples_of
from prunus.modes import evaluating

__all__ = ["ExportError", "compared", "inputs_of", "leaves", "output_of", "several"]


class ExportError(RuntimeError):
    """A network could not be written, or what was written is another one."""


def leaves(output: Any) -> list[Tensor]:
    """The floating outputs of a network, in order; caches and other objects are left out."""
    if hasattr(output, "to_tuple"):  # a Hugging Face output
        output = {key: value for key, value in output.items() if value is not None}
    found = pytree.tree_leaves(list(output.values()) if isinstance(output, Mapping) else output)
    return [leaf for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def output_of(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The floating outputs on a batch, in evaluation mode."""
    with evaluating(model), torch.no_grad():
        return [leaf.detach().clone() for leaf in leaves(call(model, batch))]


def compared(
    expected: list[Tensor], got: list[Tensor], *, engine: str, batch: Batch, limit: float
) -> Check:
    """The largest difference, relative to the largest finite output; NaN is equal to NaN alone.

    Raises:
        ExportError: another number or shape of outputs, or a difference above the limit.
    """
    shapes = inputs_of(batch)
    said = ", ".join("×".join(map(str, shape)) for shape in shapes.values())
    if [t.shape for t in expected] != [t.shape for t in got]:
        raise ExportError(
            f"What was written gives outputs of shapes {[tuple(t.shape) for t in got]} in {engine} "
            f"on input {said}, instead of {[tuple(t.shape) for t in expected]}."
        )
    worst = 0.0
    for one, other in zip(expected, got, strict=True):
        if one.numel() == 0:
            continue
        one, other = one.double().cpu(), other.double().cpu()
        scale = float(one.abs().nan_to_num(0.0, posinf=0.0).max())
        same = (one == other) | (one.isnan() & other.isnan())
        error = float((one - other).abs().masked_fill(same, 0).max())
        share = error / scale if scale else error
        worst = max(worst, share)
        if not share <= limit:  # NaN too
            raise ExportError(
                f"What was written is not equal to the network in {engine} on input {said}: error "
                f"{error:.3g} where outputs reach {scale:.3g}, at most {limit:.0e} of them."
            )
    return Check(engine=engine, inputs=shapes, error=worst, limit=limit)


def inputs_of(batch: Batch) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that go into the model."""
    args, kwargs = arguments(batch)
    found = {f"input {i}" if i else "input": value for i, value in enumerate(args)} | kwargs
    return {key: tuple(value.shape) for key, value in found.items() if isinstance(value, Tensor)}


def several(batch: Batch) -> Iterator[Any]:
    """The batch with one sample, as it is, and with twice its samples and one more."""
    samples = samples_of(batch)
    if samples.size is None or samples.mixed is not None:
        yield batch
        return
    for count in dict.fromkeys((1, samples.size, 2 * samples.size + 1)):
        yield samples.take([i % samples.size for i in range(count)])


def held(
    model: nn.Module,
    again: Callable[[Any], list[Tensor]],
    batch: Batch,
    *,
    engine: str,
    limit: float,
) -> tuple[Check, ...]:
    """Both networks on every batch of `several`."""
    return tuple(
        compared(output_of(model, part), again(part), engine=engine, batch=part, limit=limit)
        for part in several(batch)
    )
