"""Flow along all paths of a network: absolute weights, no biases, an input of ones."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from prunus.calibration.batches import as_tensors
from prunus.modes import evaluating

__all__ = ["ones_like_input", "path_flow"]


def ones_like_input(batch: Any) -> Tensor:
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
    for name, buffer in model.named_buffers():
        state[name] = buffer.double() if buffer.is_floating_point() else buffer
    asked = {name: value.detach().double().requires_grad_(True) for name, value in weights.items()}
    with evaluating(model), torch.enable_grad():
        output = functional_call(model, {**state, **asked}, (ones,))
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
        grads = torch.autograd.grad(total, list(asked.values()), allow_unused=True)
    found = {
        name: torch.zeros_like(value) if grad is None else grad
        for (name, value), grad in zip(asked.items(), grads, strict=True)
    }
    return output.detach().flatten(), found
