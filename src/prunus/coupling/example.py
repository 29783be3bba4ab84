"""The arguments that one batch stands for, and the few samples of it that a trace needs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["arguments_of", "two_samples"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_of(example: Any) -> Arguments:
    """Positional and keyword inputs of one batch: tensor, tuple (its first element), map.

    Raises:
        TypeError: `example` is no batch.
    """
    while isinstance(example, list | tuple) and example:
        example = example[0]
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, Tensor):
        return (example,), {}
    raise TypeError(
        f"`example` must be one batch: a tensor, a tuple whose first element is one, or a mapping "
        f"of keyword inputs, got {type(example).__name__}."
    )


def two_samples(arguments: Arguments) -> Arguments:
    """The same inputs with two samples, where the first axis of a tensor counts samples.

    That axis is as long as that of the first tensor which has one; tensors of another length
    (masks over positions, constants) stay whole.
    """
    sizes = [len(t) for t in _tensors(arguments) if t.ndim]
    if not sizes or sizes[0] in (0, 2):
        return arguments

    def change(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != sizes[0]:
            return tensor
        return tensor[:2] if sizes[0] > 2 else torch.cat([tensor, tensor])

    positional, keywords = arguments
    return tuple(_mapped(change, x) for x in positional), {
        key: _mapped(change, value) for key, value in keywords.items()
    }


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(change, part) for part in value)
    if type(value) is dict:
        return {key: _mapped(change, part) for key, part in value.items()}
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(note, value)
    return found
