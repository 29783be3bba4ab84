"""Running a model to learn of it, and copying it: everything stays as it was."""

import copy
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["copied", "evaluating", "uncompiled"]

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

    Raises:
        ValueError: a module's forward was replaced by a function that holds on to a module of this
            model, so that a copy would go on using the original's weights.
    """
    own = set(model.modules())
    for name, module in model.named_modules():
        function = vars(module).get("forward")
        if isinstance(function, FunctionType) and any(_holder(v) in own for v in _held(function)):
            raise ValueError(
                f"The forward of module {name!r} was replaced by a function that calls this very "
                f"object, as a copy of the model would too. Subclass {type(module).__name__} "
                f"instead."
            )
    memo: dict[int, Tensor] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo)


def _held(function: FunctionType) -> Iterator[Any]:
    """What a function brings along: the values it closes over, and its defaults."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _holder(value: Any) -> Any:
    """A module itself, or the module of a bound method; None for anything else."""
    found = getattr(value, "__self__", value)
    return found if isinstance(found, nn.Module) else None


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled modules as their own Python says.

    Nothing can be compiled before torch's compiler is imported, which takes seconds: so where it
    is not, there is nothing to say to it.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
