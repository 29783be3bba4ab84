"""Runs a model once under the trace, and sees to what the trace cannot see by itself."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.ambient import undisturbed, unless_interrupted
from prunus.coupling.example import Arguments, arguments_of, two_samples
from prunus.coupling.trace import LabelTrace
from prunus.coupling.types import Heads
from prunus.coupling.watching import Watching
from prunus.dispatch import followed, tensors_in
from prunus.hints import Batch
from prunus.modes import evaluating
from prunus.shapes import by_shapes

__all__ = ["OUTPUTS", "NotTraceable", "first_trace", "traced"]

OUTPUTS = "its outputs are the network's outputs"
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
STATES = ("past_key_values", "past_key_value", "cache_params", "mems")


class NotTraceable(Exception):
    """The model does not run on the example; the text says why."""


def traced(
    model: nn.Module, example: Batch, heads: Heads = "kv", *, training: bool = False
) -> LabelTrace:
    """The trace of one forward pass in eval mode, on two samples where the model takes them.

    With `training` modules that hold others are in training mode, so that their code takes the
    branches of it; norms and dropout stay as they are in eval mode.

    Raises:
        NotTraceable: the model fails on the example.
        TypeError: `example` is no batch.
    """
    whole = arguments_of(example)
    attempts = [two_samples(whole), whole]
    failure: Exception | None = None
    for arguments in attempts:
        for grad in (False, True):  # some models differentiate inside their forward pass
            try:
                return by_shapes(partial(_run, model, arguments, grad, heads, training))
            except Exception as error:  # a user's forward may raise errors of every kind
                unless_interrupted(error)
                failure = failure or error
    reason = next((line for line in str(failure).splitlines() if line.strip()), repr(failure))
    raise NotTraceable(f"the model does not run on the example ({reason.strip()})") from failure


def first_trace(model: nn.Module, example: Batch, heads: Heads = "kv") -> LabelTrace:
    """The trace that `traced` tries first; raises whatever the model does where it fails."""
    return _run(model, two_samples(arguments_of(example)), grad=False, heads=heads, training=False)


def _run(
    model: nn.Module, arguments: Arguments, grad: bool, heads: Heads, training: bool
) -> LabelTrace:
    with torch._C.DisableTorchFunction():  # what looks at the run has nothing to see yet
        trace = LabelTrace(model, heads)
    positional, keywords = arguments
    trace.start(tensors_in((positional, keywords)))

    def run() -> Any:
        with (
            evaluating(model),
            torch.set_grad_enabled(grad),
            _opaque_modules(model, trace),
            trace.watched(Watching(trace.leave, trace.call)),
            followed(trace),
        ):
            for module in model.modules() if training else ():
                module.training = next(module.children(), None) is not None
            return model(*positional, **keywords)

    trace.refuse(outputs_of(undisturbed(run)), OUTPUTS)
    return trace


def outputs_of(value: Any, depth: int = 0) -> list[Tensor]:
    """The tensors in what a model returns, whatever object holds them.

    States that a model hands to its own next call (a cache of keys and values) are no outputs: they
    are as wide as the layers that read them.
    """
    if isinstance(value, Tensor):
        return [value]
    if depth > 8 or isinstance(value, str | bytes | nn.Module) or "Cache" in type(value).__name__:
        return []
    if isinstance(value, Mapping):
        parts = [part for key, part in value.items() if key not in STATES]
    elif isinstance(value, list | tuple | set):
        parts = list(value)
    elif dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        parts = [part for key, part in vars(value).items() if key not in STATES]
    else:
        return []
    return [tensor for part in parts for tensor in outputs_of(part, depth + 1)]


@contextmanager
def _opaque_modules(model: nn.Module, trace: LabelTrace) -> Iterator[None]:
    """Modules that are followed as a whole: by their rule, else what they read has to stay."""
    handles: list[RemovableHandle] = []

    def enter(module: nn.Module, inputs: Any, keywords: Any) -> None:
        trace.opaque += 1

    def leave(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        try:
            if trace.opaque == 1:
                with torch._C.DisableTorchFunction():
                    trace.follow_module(module, inputs, keywords, output)
        finally:
            trace.opaque -= 1

    try:
        for module in model.modules():
            if isinstance(module, RECURRENT):
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                hook = module.register_forward_hook(
                    leave, prepend=True, with_kwargs=True, always_call=True
                )  # what other hooks do to the output is followed
                handles.append(hook)
        yield
    finally:
        for handle in handles:
            handle.remove()
