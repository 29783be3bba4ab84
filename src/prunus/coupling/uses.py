"""Weights that a model's code uses outside the layers that own them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.ambient import plainly, undisturbed, unless_interrupted
from prunus.coupling.example import Arguments, arguments_of, two_samples
from prunus.coupling.weights import Book
from prunus.dispatch import tensors_in
from prunus.hints import Batch
from prunus.modes import evaluating, private
from prunus.shapes import by_shapes

__all__ = ["used_elsewhere"]


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations on a layer's weight while another module runs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler (seconds) at the first operation

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.book = Book(model)
        self.inside: list[str] = []
        self.found: dict[str, str] = {}

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:  # a view is no use by itself
            for tensor in tensors_in((args, kwargs or {})):
                entry = self.book.of(tensor) if tensor.layout == torch.strided else None
                owner = None if entry is None else self.book.owner(entry.name)
                if owner is not None and owner not in self.inside:
                    name = func._schema.name.replace("::", ".")
                    self.found.setdefault(owner, name.removesuffix("_"))
        return result


@plainly
def used_elsewhere(model: nn.Module, example: Batch) -> dict[str, str]:
    """{layer: operation} of layers that run, and whose weight is used outside their forward too.

    Such a weight serves two purposes, as in a tied autoencoder that multiplies by its encoder's
    transposed weight: the inputs of the layer do not say what a change of it costs.

    Args:
        model: the network; it is left as it is.
        example: one batch; one forward pass is made on two samples of it.

    Returns:
        the first operation that uses the weight outside, by the layer's name; nothing where the
        model does not run.
    """
    whole = arguments_of(example)
    with private(model) as own:
        for arguments in (two_samples(whole), whole):
            try:
                return undisturbed(partial(by_shapes, partial(_uses, own, arguments)))
            except Exception as error:  # of the user's forward; calibration has its say on that
                unless_interrupted(error)
    return {}


def _uses(model: nn.Module, arguments: Arguments) -> dict[str, str]:
    """What one run shows."""
    positional, keywords = arguments
    uses = _Uses(model)
    ran: set[str] = set()
    with evaluating(model), torch.no_grad(), _inside(model, uses.inside, ran), uses:
        model(*positional, **keywords)
    return {name: operation for name, operation in uses.found.items() if name in ran}


@contextmanager
def _inside(model: nn.Module, inside: list[str], ran: set[str]) -> Iterator[None]:
    """While active, `inside` holds the names of the modules that run, `ran` those that have."""
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def enter(_: nn.Module, inputs: Any) -> None:
            inside.append(name)
            ran.add(name)

        def leave(_: nn.Module, inputs: Any, output: Any) -> None:
            inside.remove(name)

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))

    try:
        for name, module in model.named_modules():
            if module._parameters:
                watch(name, module)
        yield
    finally:
        for handle in handles:
            handle.remove()
