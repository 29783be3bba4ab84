"""The arguments that one batch stands for, and the few samples of it that a trace needs."""

from typing import Any

from prunus.hints import Batch
from prunus.inputs import arguments, samples_of, tensors_of

__all__ = ["Arguments", "arguments_of", "two_samples"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_of(example: Batch) -> Arguments:
    """Positional and keyword inputs of one batch, read as calibration reads it.

    Raises:
        TypeError: `example` is no batch.
    """
    found = arguments(example)
    if not tensors_of(found):
        raise TypeError(
            f"`example` must be one batch: a tensor, a tuple whose first element is the input, or "
            f"a mapping of keyword inputs, got {type(example).__name__}."
        )
    return found


def two_samples(given: Arguments) -> Arguments:
    """The same inputs with two samples, where it is clear what counts them; else as they are."""
    positional, keywords = given
    samples = samples_of({"*": positional, **keywords})
    if samples.size in (None, 0, 2):
        return given
    cut = dict(samples.take([0, 0] if samples.size == 1 else [0, 1]))
    return cut.pop("*"), cut
