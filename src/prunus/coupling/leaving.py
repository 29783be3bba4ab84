"""Values that leave torch, after which no one can say what becomes of them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Leaving"]

WAYS: dict[Any, str] = {
    Tensor.numpy: "numpy",
    Tensor.tolist: "tolist",
    Tensor.__array__: "__array__",
    Tensor.__dlpack__: "__dlpack__",
    Tensor.data_ptr: "data_ptr",
}


class Leaving(TorchFunctionMode):
    """Tells `found` of tensors that are handed to other code, and how."""

    def __init__(self, found: Callable[[list[Tensor], str], None]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function, and look at its name."""
        if func in WAYS and isinstance(args[0], Tensor):
            self._found([args[0]], f"its values leave torch by Tensor.{WAYS[func]}")
        return func(*args, **(kwargs or {}))
