"""Running a model to learn of it: in evaluation mode, everything as it was afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating"]


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
