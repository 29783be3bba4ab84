"""Where a model lies, and moving it for a while."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["checked_device", "device_of", "placed"]


@contextmanager
def placed(model: nn.Module, device: str | torch.device | None) -> Iterator[torch.device]:
    """The model on `device` (where it is, if None); it goes back on any exit.

    Raises:
        ValueError: a model that lies on several devices was asked to move.
    """
    home = device_of(model)
    where = home if device is None else checked_device(device)
    if where == home:
        yield where
        return
    places = {str(t.device) for t in [*model.parameters(), *model.buffers()]}
    if len(places) > 1:
        raise ValueError(
            f"The model lies on {', '.join(sorted(places))}, so it cannot move to {where} and "
            f"back. Leave `device` out."
        )
    try:
        model.to(where)
        yield where
    finally:
        model.to(home)


def checked_device(device: str | torch.device) -> torch.device:
    """`device` as a torch device that is there, or a ValueError."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"`device` must name a torch device, such as cpu or cuda:0, got {device!r}."
        ) from None
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().partition("\n")[0].partition(". ")[0]  # torch goes on at length
        said = first.rstrip(".") or type(error).__name__
        raise ValueError(
            f"`device` {device} is not there: {said}. Leave it out to compute where the model is."
        ) from None
    return found


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU where it has none."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
