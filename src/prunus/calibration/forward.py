"""What a model says of a batch: its output as a tensor, and its loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.hints import Batch

__all__ = ["gradients", "loss_of", "tensor_of"]


def gradients(
    target: Tensor,
    wanted: Sequence[Tensor],
    vector: Tensor | None = None,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad`, None for what the target does not depend on."""
    return torch.autograd.grad(
        target,
        wanted,
        vector,
        retain_graph=retain_graph or create_graph,
        create_graph=create_graph,
        allow_unused=True,
    )


def tensor_of(output: Any) -> Tensor:
    """The output as a tensor: itself, its `logits`, or the first that it holds.

    `logits` is an attribute, or the key of a mapping; the first is that of a tuple, a mapping or a
    data class.

    Raises:
        TypeError: it holds no tensor.
    """
    if isinstance(output, Tensor):
        return output
    named = _named(output, "logits")
    if isinstance(named, Tensor):
        return named
    for part in _parts(output):
        if isinstance(part, Tensor):
            return part
    raise TypeError(f"the model returns {type(output).__name__}, and no tensor or `.logits`.")


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _parts(output: Any) -> Iterable[Any]:
    if isinstance(output, Mapping):
        return output.values()
    if isinstance(output, tuple | list):
        return output[:1]
    if is_dataclass(output):
        return (getattr(output, field.name) for field in fields(output))
    return ()


def loss_of(output: Any, batch: Batch, loss: Any) -> Tensor:
    """The scalar loss of a batch: the caller's, the output's own, or cross-entropy.

    Raises:
        ValueError: none of them applies.
    """
    if loss is not None:
        value: Tensor = loss(output, batch)
        return value
    own = _named(output, "loss")
    if isinstance(own, Tensor):
        return own
    labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if isinstance(labels, Tensor) and not labels.is_floating_point() and isinstance(output, Tensor):
        return nn.functional.cross_entropy(output, labels.long())
    raise ValueError(
        "This recipe needs a loss, and the output has none and the batches are no pairs "
        "(x, integer y). Pass loss=function(output, batch) -> scalar."
    )
