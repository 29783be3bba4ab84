"""Calls of torch's functions as the model's code makes them, before they are taken apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunus.coupling.numbers import WITHOUT
from prunus.shapes import WAYS

__all__ = ["Watching"]


class Watching(TorchFunctionMode):
    """Tells `left` of tensors that are handed to other code, and how, and `called` of other calls.

    Attributes:
        inside: while positive, a function runs that has been seen to begin.
    """

    def __init__(
        self,
        left: Callable[[list[Tensor], str], None],
        called: Callable[[str, Sequence[Any], Mapping[str, Any], Any], None],
    ) -> None:
        super().__init__()
        self._left, self._called = left, called
        self.inside = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function, and look at its name."""
        if func in WAYS and isinstance(args[0], Tensor):
            self._left([args[0]], f"its values leave torch by Tensor.{WAYS[func]}")
        kwargs = kwargs or {}
        self.inside += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self.inside -= 1
        name = getattr(func, "__name__", "")
        if name not in WITHOUT:
            self._called(name, args, kwargs, result)
        return result
