"""Flow along all paths of a network: absolute weights, no biases, an input of ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from prunus.ambient import mutable
from prunus.calibration.forward import gradients
from prunus.hints import Batch
from prunus.inputs import as_tensors
from prunus.modes import evaluating
from prunus.noise import passed

__all__ = ["ones_like_input", "path_flow"]


def ones_like_input(batch: Batch) -> Tensor:
    """One sample of ones in the shape of a batch's input, float64.

    Raises:
        ValueError: the input is no tensor of real numbers.
    """
    batch = as_tensors(batch)
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(
            f"The flow along paths needs real inputs, got {kind}. Leave token inputs to `snip`."
        )
    return torch.ones_like(inputs[:1], dtype=torch.float64)


def path_flow(
    model: nn.Module, weights: Mapping[str, Tensor], ones: Tensor
) -> tuple[Float[Tensor, " outputs"], dict[str, Tensor]]:
    """Flow into every output, and ∂R/∂w of the whole flow R for the given weights.

    R = 1ᵀ f(1; |θ|) with every parameter replaced by its absolute value and every bias by zero;
    for a network of linear layers and ReLU it is the sum over paths of products of |weights|.
    Norms pass on their input times the absolute scale: a trained batch norm's running mean is a
    shift like a bias, and a layer norm would take the common part of the flow away, so that
    nothing (or a negative number) would be left of a path.

    Args:
        model: the network, in evaluation mode while this runs; it is not changed.
        weights: {parameter name: value ≥ 0 to use}, for the parameters whose gradient is asked.
        ones: one sample of ones, float64; see `ones_like_input`.

    Raises:
        ValueError: the flow is not finite, or the model's output is no tensor.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name not in weights:
            bias = name.rpartition(".")[2] == "bias"
            wide = parameter.detach().abs().double()
            state[name] = torch.zeros_like(wide) if bias else wide
    means = {
        f"{name}.running_mean".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, _BATCH_NORMS)
    }
    for name, buffer in model.named_buffers():
        wide = buffer.double() if buffer.is_floating_point() else buffer
        state[name] = torch.zeros_like(wide) if name in means else wide
    asked = {name: value.detach().double().requires_grad_(True) for name, value in weights.items()}
    with (
        evaluating(model),
        _linear_norms(model),
        mutable(),
        torch.enable_grad(),
    ):
        output = passed(model, partial(functional_call, model, {**state, **asked}, (ones,)))
        if not isinstance(output, Tensor):
            raise ValueError(
                f"The flow along paths needs a tensor as output, got {type(output).__name__}."
            )
        total = output.sum()
        if not bool(torch.isfinite(total)):
            raise ValueError(
                f"The flow along the network's paths is {total.item()} in float64: products of "
                f"weights overflow. Use a score without path products, such as SNIP."
            )
        grads = gradients(total, list(asked.values()))
    found = {
        name: torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(asked.items(), grads, strict=True)
    }
    return output.detach().flatten(), found


_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_SAMPLE_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


@contextmanager
def _linear_norms(model: nn.Module) -> Iterator[None]:
    """Norms with statistics of each sample pass on x · |γ| while this runs."""

    def scaled(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del output
        x = args[0]
        scale: Tensor | None = getattr(module, "weight", None)
        if scale is None:
            return x
        if not isinstance(module, nn.LayerNorm | nn.RMSNorm):  # one number a channel, on axis 1
            scale = scale.view(-1, *[1] * (x.ndim - 2))
        return x * scale

    handles = [
        module.register_forward_hook(scaled)
        for module in model.modules()
        if isinstance(module, _SAMPLE_NORMS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
