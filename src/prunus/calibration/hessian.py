"""The Hessian times the gradient of the loss, for the weights that are to be pruned."""

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.ambient import mutable
from prunus.calibration.batches import Batches, call, parts, size_of, to_device
from prunus.calibration.forward import gradients, loss_of
from prunus.hints import Batch
from prunus.modes import evaluating
from prunus.weights import Weight

__all__ = ["TEMPERATURE", "hessian_gradients"]

TEMPERATURE = 200.0  # by which GraSP divides the logits


def hessian_gradients(
    model: nn.Module,
    names: Mapping[str, Weight],
    batches: Batches,
    *,
    loss: Any = None,
    temperature: float = TEMPERATURE,
    device: torch.device,
) -> dict[str, Tensor]:
    """H g of the named layers' parameters, in their shapes, float64; two passes over the data.

    g and H are gradient and Hessian of the mean loss over all samples, both restricted to the named
    weights; the logits are divided by `temperature`.

    Raises:
        ValueError: the output is no tensor, so that it cannot be divided; or no loss applies.
    """
    weights: list[Any] = [weight.parameter for weight in names.values()]
    flags = [w.requires_grad for w in weights]

    def gradient(batch: Batch, number: int, create_graph: bool) -> tuple[Tensor, ...]:
        output = call(model, batch, number)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"GraSP divides the logits by {temperature:g}, but the model's output is "
                f"{type(output).__name__}. Wrap the model so that it returns its logits."
            )
        value = loss_of(output / temperature, batch, loss) * (size_of(batch) or 1)
        grads = gradients(value, weights, create_graph=create_graph)
        return tuple(
            torch.zeros_like(w) if g is None else g for w, g in zip(weights, grads, strict=True)
        )

    for w in weights:
        w.requires_grad_(True)
    try:
        # Fused attention kernels have no second derivative.
        with (
            evaluating(model),
            mutable(),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            total = [torch.zeros_like(w) for w in weights]
            samples, numbers = 0, count()
            for batch in batches:
                for part in parts(batch):
                    samples += size_of(part) or 1
                    grads = gradient(to_device(part, device), next(numbers), create_graph=False)
                    total = [t + g.detach() for t, g in zip(total, grads, strict=True)]
            result = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
            numbers = count()
            for batch in batches:
                for part in parts(batch):
                    grads = gradient(to_device(part, device), next(numbers), create_graph=True)
                    dot = sum((g * t).sum() for g, t in zip(grads, total, strict=True))
                    assert isinstance(dot, Tensor)  # there is at least one weight
                    curved = gradients(dot, weights)
                    result = [
                        r if c is None else r + c.detach().double()
                        for r, c in zip(result, curved, strict=True)
                    ]
    finally:
        for w, flag in zip(weights, flags, strict=True):
            w.requires_grad_(flag)
    return {name: r / samples**2 for name, r in zip(names, result, strict=True)}
