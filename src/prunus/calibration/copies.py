"""Modules that read copies, so that later operations in place spoil nothing autograd keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["reading_copies"]


@contextmanager
def reading_copies(model: nn.Module) -> Iterator[None]:
    """Every module with parameters of its own is given copies of its inputs while this is open.

    Networks written for inference change tensors in place after a layer has read them, which
    spoils the gradients of that layer and whatever a hook has kept of its inputs.
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        copies: dict[int, Tensor] = {}

        def copied(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return copies.setdefault(id(value), value.clone())  # one tensor stays one

        return tuple(map(copied, args)), {key: copied(value) for key, value in kwargs.items()}

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True)
        for module in model.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
