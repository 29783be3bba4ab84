"""Many networks of one shape trained at once, each with its own weights and mask."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.func import functional_call, vmap

from prunus.check import positive, whole

__all__ = ["FullBatch", "stacked_fit", "stacked_outputs"]

Stack = Mapping[str, Tensor]  # parameter name -> one value per network along the first axis


@dataclass(frozen=True, kw_only=True)
class FullBatch:
    """Full-batch Adam on the cross-entropy.

    Attributes:
        steps: number of steps.
        learning_rate: of Adam.
        chunk: networks trained at a time; few keep the activations in the processor's cache.
    """

    steps: int = 200
    learning_rate: float = 1e-2
    chunk: int = 16

    def __post_init__(self) -> None:
        whole("steps", self.steps, low=1)
        whole("chunk", self.chunk, low=1)
        positive("learning_rate", self.learning_rate)


def check_stackable(model: nn.Module) -> None:
    """Raise where the networks of a stack could not be told apart while they train."""
    if any(True for _ in model.buffers()):
        raise ValueError(
            "The model has buffers (batch norm?), which a stack of networks cannot train. "
            "Use a model without them, or prune and train one at a time with prunus.prune."
        )
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()):
        raise ValueError("The model has dropout, which a stack of networks cannot train.")


def stacked_outputs(
    model: nn.Module, stack: Stack, inputs: Num[Tensor, "batch ..."]
) -> Float[Tensor, "networks batch classes"]:
    """The logits of every network of the stack on the same inputs."""
    outputs: Tensor = vmap(lambda own: functional_call(model, own, (inputs,)))(dict(stack))
    return outputs


def stacked_fit(
    model: nn.Module,
    stack: Stack,
    masks: Stack,
    inputs: Num[Tensor, "batch ..."],
    labels: Int[Tensor, " batch"],
    training: FullBatch,
) -> tuple[dict[str, Tensor], Float[Tensor, " networks"]]:
    """Train every network of the stack; masked weights stay exactly zero.

    The gradient of the sum of losses is each network's own gradient, and Adam works entry by
    entry, so this equals training one after another. The gradient of the mean cross-entropy with
    respect to the logits is (softmax − one-hot)/n, so no loss is computed before the last step.

    Args:
        model: gives the forward pass; its own parameters are not used.
        stack: first weights.
        masks: for some of the parameters, True where kept.
        inputs: all training inputs.
        labels: their classes.
        training: steps and rate.

    Returns:
        the trained weights, and the last training loss of every network.

    Raises:
        FloatingPointError: a loss is no longer finite.
    """
    check_stackable(model)
    count = len(next(iter(stack.values())))
    pieces = []
    losses = []
    for start in range(0, count, training.chunk):
        part = slice(start, start + training.chunk)
        own = {
            name: (value[part] * masks[name][part] if name in masks else value[part])
            .clone()
            .requires_grad_(True)
            for name, value in stack.items()
        }
        kept = {name: mask[part].to(own[name].dtype) for name, mask in masks.items()}
        optimizer = torch.optim.Adam(list(own.values()), training.learning_rate, fused=True)
        for _ in range(training.steps):
            outputs = stacked_outputs(model, own, inputs)
            optimizer.zero_grad()
            torch.autograd.backward(outputs, _logit_gradient(outputs.detach(), labels))
            for name, mask in kept.items():
                grad = own[name].grad
                assert grad is not None  # every masked parameter takes part
                grad.mul_(mask)
            optimizer.step()  # a gradient that is always zero leaves the zeros alone
        with torch.no_grad():
            outputs = stacked_outputs(model, own, inputs)
        each = _losses(outputs, labels)
        if not bool(torch.isfinite(each).all()):
            raise FloatingPointError(
                f"A training loss is not finite. Lower the rate, got {training.learning_rate}."
            )
        pieces.append({name: value.detach() for name, value in own.items()})
        losses.append(each.double())
    return {name: torch.cat([p[name] for p in pieces]) for name in stack}, torch.cat(losses)


def _logit_gradient(
    outputs: Float[Tensor, "networks batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, "networks batch classes"]:
    """Gradient of every network's mean cross-entropy, (softmax − one-hot)/n."""
    power = (outputs - outputs.amax(2, keepdim=True)).exp_()
    gradient = power.div_(power.sum(2, keepdim=True))
    gradient[:, torch.arange(len(labels)), labels] -= 1
    return gradient.div_(len(labels))


def _losses(
    outputs: Float[Tensor, "networks batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " networks"]:
    """Mean cross-entropy of every network, nats."""
    flat = labels.repeat(len(outputs))
    loss = nn.functional.cross_entropy(outputs.flatten(0, 1), flat, reduction="none")
    return loss.reshape(len(outputs), -1).mean(1)
