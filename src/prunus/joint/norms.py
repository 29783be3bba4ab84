"""Batch norms inside a search: statistics of each step while it lasts, of all data at its end."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

__all__ = ["batch_norms", "parts_of", "renewed"]

Norm = nn.modules.batchnorm._BatchNorm
LEAST = 2  # samples of a step, of which a variance can be taken


def batch_norms(model: nn.Module) -> list[Norm]:
    """All norms that have one mean and variance for each channel over a batch."""
    return [module for module in model.modules() if isinstance(module, Norm)]


@contextmanager
def renewed(norms: Iterable[Norm]) -> Iterator[None]:
    """Forget the running statistics; afterwards they are the mean over the batches run inside."""
    pace = {norm: norm.momentum for norm in norms}
    for norm in pace:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean, not one that forgets
    try:
        yield
    finally:
        for norm, momentum in pace.items():
            norm.momentum = momentum


def parts_of(samples: int, size: int, *, norms: bool) -> Sequence[tuple[int, int]]:
    """(first, end) of parts of `size` samples; beside norms no part is of one sample alone.

    Raises:
        ValueError: norms would have statistics of one sample.
    """
    if norms and min(samples, size) < LEAST:
        given = f"batches of {samples}" if samples < LEAST else f"batch={size}"
        raise ValueError(
            f"norms='batch' takes statistics of the samples of each step, of which there must be "
            f"{LEAST} or more, got {given}. Use larger batches, or norms='kept'."
        )
    ends = [*range(size, samples, size), samples]
    if norms and len(ends) > 1 and ends[-1] - ends[-2] < LEAST:
        del ends[-2]
    return list(zip([0, *ends[:-1]], ends, strict=True))
