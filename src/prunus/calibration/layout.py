"""Which stream every layer reads, and whether its rows hold samples or positions first.

Both are seen by running the model on a sample or two. Where there are two streams, it runs with a
second one that is a position shorter: a layer whose input shrank reads that stream. So it does
where there is one mask beside inputs that it does not mask, as of a text with an image: what is not
shortened with the text has no padding. Where a layer's rows lie is shown by a second sample: the
axis that grows counts samples; of flat rows those that stay tell the order. What the second sample
does not change is no sample's: a table, as of relative positions.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.batches import UNFIT
from prunus.calibration.forward import tensor_of
from prunus.calibration.padding import (
    BOTH,
    FIRST,
    MASKS,
    NEITHER,
    OUTPUT,
    SECOND,
    Layout,
    second_length,
)
from prunus.hints import Batch
from prunus.inputs import arguments
from prunus.modes import evaluating
from prunus.noise import passed
from prunus.views import Unclear
from prunus.weights import Weight, weights_of

__all__ = ["layout_of"]

Rows = dict[str, list[Tensor]]
# Arguments that make the second stream or go along with it, and the axes that count its positions
# where samples come first.
FOLLOWING: dict[str, tuple[int, ...]] = {
    "decoder_input_ids": (1,),
    "decoder_inputs_embeds": (1,),
    "tgt": (1,),
    "labels": (1,),
    "decoder_attention_mask": (1,),
    "tgt_mask": (0, 1),
    "tgt_key_padding_mask": (1,),
    "memory_mask": (0,),
}
SQUARE = ("tgt_mask", "memory_mask")  # over positions alone


def layout_of(model: nn.Module, batch: Batch) -> Layout:
    """How the rows of every layer lie; empty for a batch without masks.

    Args:
        model: runs up to four times on one or two samples, in evaluation mode, before any hooks
            of a calibration.
        batch: the first batch, on the model's device.
    """
    given = arguments(batch)[1]
    sizes = {given[n].shape[0] for n in MASKS if isinstance(given.get(n), Tensor)}
    if not sizes:
        return Layout()
    size = max(sizes)
    for time_major in (False, True):
        ones, twos = (_taken(given, n, size, time_major) for n in (1, 2))
        alone = _tried(model, ones)
        both = alone if size == 1 or alone is None else _tried(model, twos)
        if alone is not None and both is not None:
            turned = _turned(alone, both)
            tables = _tables(alone, both) if size > 1 else frozenset()
            return Layout(_streams(model, ones, alone, time_major), turned, time_major, tables)
    return Layout()


def _taken(given: Mapping[str, Any], count: int, size: int, time_major: bool) -> dict[str, Any]:
    """The arguments of the first samples; masks over positions alone stay whole."""

    def cut(name: str, value: Any) -> Any:
        axis = 1 if time_major and name not in MASKS else 0
        alone = name.endswith("_mask") and name not in MASKS
        if alone or not isinstance(value, Tensor) or value.ndim <= axis:
            return value
        return value.narrow(axis, 0, min(count, size)) if value.shape[axis] == size else value

    return {name: cut(name, value) for name, value in given.items()}


def _tried(model: nn.Module, kwargs: Mapping[str, Any]) -> Rows | None:
    """The rows that every layer reads, call by call, and the model's; None where it cannot run."""
    found: Rows = {}

    def hook_for(weight: Weight) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = weight.inputs(args, kwargs)
            if inputs is not None:
                with suppress(Unclear):  # patches of images, say: their shape tells the stream
                    inputs = weight.view.channels(module, inputs)
                found.setdefault(weight.name, []).append(inputs.detach().clone())

        return hook

    with ExitStack() as stack:
        for weight in weights_of(model).values():
            hook = hook_for(weight)
            handle = weight.module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        try:
            output = passed(model, partial(model, **kwargs))
        except (*UNFIT, ValueError):
            return None
    with suppress(ValueError, TypeError):  # none that gradients could start from
        answer = tensor_of(output)
        if answer.ndim > 1:
            found[OUTPUT] = [answer.reshape(*answer.shape[:2], -1)]
    return found


def _turned(alone: Rows, both: Rows) -> dict[str, bool]:
    """{layer: whether positions come before samples}, of those whose calls agree."""
    found = {}
    for name, rows in alone.items():
        pairs = zip(rows, both.get(name, []), strict=False)
        said = {order for one, two in pairs if (order := _order(one, two)) is not None}
        if len(said) == 1:
            found[name] = said.pop()
    return found


def _tables(alone: Rows, both: Rows) -> frozenset[str]:
    """Layers that read of two samples what they read of one, in every call."""
    return frozenset(
        name
        for name, rows in alone.items()
        if name != OUTPUT
        and len(rows) == len(both.get(name, ()))
        and all(map(torch.equal, rows, both[name]))
    )


def _order(one: Tensor, two: Tensor) -> bool | None:
    """Whether positions come first in rows of one sample and of two, or None."""
    lead, more = tuple(one.shape[:-1]), tuple(two.shape[:-1])
    if (1, *lead[1:]) == lead and (2, *lead[1:]) == more and len(lead) == 2:
        return False
    if (*lead[:-1], 1) == lead and (*lead[:-1], 2) == more and len(lead) == 2:
        return True
    if len(lead) != 1 or more != (2 * lead[0],):
        return None
    first, turned = ((two[at] - one).abs().max() for at in (slice(lead[0]), slice(None, None, 2)))
    return None if first == turned else bool(turned < first)


def _streams(
    model: nn.Module, kwargs: Mapping[str, Any], whole: Rows, time_major: bool
) -> dict[str, int]:
    """{layer: stream} by what a shorter stream shortens; empty where there is one stream."""
    decoding = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    two = second_length(kwargs, time_major) is not None or (decoding and "labels" in kwargs)
    shorter = _shorter_second(kwargs, time_major) if two else _shorter_masked(kwargs)
    less = None if shorter is None else _tried(model, shorter)
    if less is None:
        return {}
    moves, stays = (SECOND, FIRST) if two else (FIRST, NEITHER)
    found = {}
    for name, rows in whole.items():
        pairs = zip(rows, less.get(name, []), strict=False)
        moved = {before.shape != after.shape for before, after in pairs}
        found[name] = BOTH if len(moved) > 1 else moves if True in moved else stays
    found.pop(OUTPUT, None)
    return found if set(found.values()) != {FIRST} else {}


def _shorter_second(kwargs: Mapping[str, Any], time_major: bool) -> dict[str, Any]:
    """The inputs with a second stream that is a position shorter."""
    shorter = dict(kwargs)
    for name, axes in FOLLOWING.items():
        given = kwargs.get(name)
        if isinstance(given, Tensor):
            fixed = name in SQUARE or name in MASKS
            for axis in (0,) if time_major and not fixed else axes:
                if given.ndim > axis and given.shape[axis] > 1:
                    given = given.narrow(axis, 0, given.shape[axis] - 1)
            shorter[name] = given
    return shorter


def _shorter_masked(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The inputs with what the mask masks a position shorter, beside others that it does not.

    None where the mask may be about all inputs, or may be about one in another order of axes.
    """
    tensors = {name: given for name, given in kwargs.items() if isinstance(given, Tensor)}
    shapes = {tuple(given.shape[:2]) for name, given in tensors.items() if name in MASKS}
    if len(shapes) != 1 or any(tensors[n].ndim != 2 for n in MASKS.keys() & tensors.keys()):
        return None
    (masked,) = shapes
    length = masked[1]
    moved = {n for n, given in tensors.items() if tuple(given.shape[:2]) == masked}
    others = [given for name, given in tensors.items() if name not in moved and given.ndim > 1]
    unclear = any(given.ndim == 3 and length in given.shape[1:] for given in others)
    if not others or unclear or length < 2 or moved <= MASKS.keys():
        return None
    return {n: v.narrow(1, 0, length - 1) if n in moved else v for n, v in kwargs.items()}
