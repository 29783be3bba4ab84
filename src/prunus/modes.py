"""Running a model to learn of it, and copying it: everything stays as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["copied", "evaluating"]

M = TypeVar("M", bound=nn.Module)


@contextmanager
def evaluating(model: nn.Module, *, fused: bool = False) -> Iterator[nn.Module]:
    """The model in evaluation mode; every module's own flag comes back on any exit.

    Args:
        model: the network.
        fused: leave the fused attention kernel on; it is faster, and hides the modules inside
            it from hooks and traces.
    """
    flags = [(module, module.training) for module in model.modules()]
    kernel = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(kernel and fused)
        yield model.eval()
    finally:
        torch.backends.mha.set_fastpath_enabled(kernel)
        for module, flag in flags:
            module.training = flag


def copied(model: M) -> M:
    """A deep copy, also of a model some of whose tensors are results of a computation.

    Hooks such as those of `torch.nn.utils.prune` and `spectral_norm` leave the weight they worked
    out as a plain attribute, which `copy.deepcopy` refuses. Its value is copied; the next call
    works it out anew.
    """
    memo: dict[int, Tensor] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)
