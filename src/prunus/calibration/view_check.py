"""A view that is not ours is held against the layer's output before anything is built on it."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.calibration.batches import call, first_of, to_device
from prunus.calibration.reasons import type_name
from prunus.hints import Batch
from prunus.modes import evaluating
from prunus.views import known_exactly
from prunus.weights import Weight

__all__ = ["WrongView", "blind_layers", "check_round_trip", "check_views"]

TF32 = 2.0**-10  # rounding of products that a GPU may take in fewer bits
ROUNDINGS = 16  # of the sum of absolute products that a forward may lose


class WrongView(ValueError):
    """A view that says of a layer what the layer does not do."""


def check_round_trip(weight: Weight) -> None:
    """Refuse a user's view whose `parameter` does not undo its `matrix`.

    Raises:
        WrongView: it does not; the layer is named.
    """
    if known_exactly(weight.module):
        return
    values = weight.parameter.detach()
    own = values if weight.source.index is None else values[weight.source.index]
    matrix = weight.matrix()
    back = weight.view.parameter(weight.module, matrix) if matrix.ndim == 2 else matrix
    if matrix.ndim != 2 or back.shape != own.shape or not torch.equal(back, own):
        raise WrongView(
            f"The view of layer {weight.name!r} ({type_name(weight.module)}) makes a matrix of "
            f"shape {tuple(matrix.shape)} of a parameter of shape {tuple(own.shape)}, and its "
            f"`parameter` gives back {tuple(back.shape)} that is not the same. Register a view "
            f"whose `parameter` undoes its `matrix`."
        )


def check_views(
    model: nn.Module, weights: Iterable[Weight], batch: Batch, device: torch.device
) -> None:
    """Run one sample and compare W x + b with the output, for layers that are not exactly ours.

    Our own types in their own forward are left out. So are the matrices of a module with several.

    Args:
        model: runs once where there is something to check.
        weights: of the layers.
        batch: of which one sample runs, or all where the model asks for more.
        device: where the model lives.

    Raises:
        WrongView: a view gives other outputs than its layer; both numbers are told.
    """
    doubtful = [w for w in weights if w.source.alone and not known_exactly(w.module)]
    if not doubtful:
        return
    with ExitStack() as stack:
        for weight in doubtful:
            before, after = _hooks(weight)
            module = weight.module
            for handle in (
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after),
            ):
                stack.callback(handle.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        _run(model, batch, device)


def _run(model: nn.Module, batch: Batch, device: torch.device) -> None:
    """Run one sample, or the whole batch where the model asks for more."""
    try:
        call(model, to_device(first_of(batch, 1), device))
    except WrongView:
        raise
    except ValueError:
        call(model, to_device(batch, device))


def blind_layers(
    model: nn.Module, weights: Iterable[Weight], batch: Batch, device: torch.device
) -> dict[str, str]:
    """{layer: reason} of layers whose modules do not show what they multiply, on one sample.

    Args:
        model: runs once where a module holds several weights.
        weights: of the layers.
        batch: of which one sample runs, or all where the model asks for more.
        device: where the model lives.
    """
    found: dict[str, str] = {}
    doubtful = [weight for weight in weights if not weight.source.alone]

    def hook_for(weight: Weight) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if weight.inputs(args, kwargs) is None:
                found[weight.name] = weight.source.unseen

        return hook

    with ExitStack() as stack:
        for weight in doubtful:
            hook = weight.module.register_forward_pre_hook(hook_for(weight), with_kwargs=True)
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        if doubtful:
            _run(model, batch, device)
    return found


def _hooks(weight: Weight) -> tuple[Callable[..., None], Callable[..., None]]:
    kept: list[Tensor | None] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = weight.inputs(args, kwargs)
        kept.append(None if inputs is None else inputs.detach().clone())

    def after(module: nn.Module, args: Any, output: Any) -> None:
        inputs = kept.pop()
        if inputs is not None and isinstance(output, Tensor):
            _compare(weight, inputs, output.detach())

    return before, after


def _compare(weight: Weight, inputs: Tensor, output: Tensor) -> None:
    shown = f"The view of layer {weight.name!r} ({type_name(weight.module)})"
    cure = "Register a view whose `vectors` are what the weight multiplies, or exclude the layer."
    try:
        x = weight.view.vectors(weight.module, inputs).double()
        y = weight.view.responses(weight.module, output).double()
        told, slack = _product(weight, x), _product(weight, x, absolute=True)
    except (RuntimeError, IndexError) as error:
        said = str(error).splitlines()[0]
        raise WrongView(f"{shown} does not fit it: {said}. {cure}") from error
    if told.shape != y.shape:
        raise WrongView(
            f"{shown} gives outputs of shape {tuple(told.shape)}, and the layer gives "
            f"{tuple(y.shape)} (positions, groups, outputs of a group). {cure}"
        )
    eps = torch.finfo(output.dtype).eps
    if output.is_cuda and output.dtype == torch.float32:
        eps = TF32
    worst = (told - y).abs()
    if bool((worst > ROUNDINGS * eps * slack + torch.finfo(output.dtype).tiny).any()):
        raise WrongView(
            f"{shown} gives W x + b up to {float(worst.max()):.3g} away from the layer's own "
            f"outputs, which reach {float(y.abs().max()):.3g}: its forward does more, or other "
            f"vectors are multiplied. {cure}"
        )


def _product(
    weight: Weight, x: Float[Tensor, "positions groups in"], *, absolute: bool = False
) -> Float[Tensor, "positions groups out"]:
    """W x + b of every group, or the same of absolute values."""
    matrix, bias = weight.matrix().double(), weight.bias()
    groups = weight.source.groups
    blocks = matrix.view(groups, -1, matrix.shape[1])
    if absolute:
        blocks, x = blocks.abs(), x.abs()
    found = torch.einsum("pgi,goi->pgo", x, blocks)
    if bias is not None:
        shift = bias.double().view(groups, -1)
        found = found + (shift.abs() if absolute else shift)
    return found
