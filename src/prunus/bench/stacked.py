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
        chunk: networks trained at a time.
    """

    steps: int = 200
    learning_rate: float = 1e-2
    chunk: int = 64

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
    entry, so this equals training one after another.

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
        optimizer = torch.optim.Adam(list(own.values()), training.learning_rate, foreach=True)
        networks = len(next(iter(own.values())))
        for step in range(training.steps + 1):
            outputs = stacked_outputs(model, own, inputs)
            loss = nn.functional.cross_entropy(
                outputs.flatten(0, 1), labels.repeat(networks), reduction="none"
            )
            each = loss.reshape(networks, -1).mean(1)
            if step == training.steps:
                break
            optimizer.zero_grad()
            torch.autograd.backward(each.sum())
            for name, mask in kept.items():
                grad = own[name].grad
                assert grad is not None  # every masked parameter takes part
                grad.mul_(mask)
            optimizer.step()  # a gradient that is always zero leaves the zeros alone
        if not bool(torch.isfinite(each).all()):
            raise FloatingPointError(
                f"A training loss is not finite. Lower the rate, got {training.learning_rate}."
            )
        pieces.append({name: value.detach() for name, value in own.items()})
        losses.append(each.detach().double())
    return {name: torch.cat([p[name] for p in pieces]) for name in stack}, torch.cat(losses)
