"""How a model is run to learn of it: in evaluation mode, with a loss where one is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["evaluating", "loss_of"]


def loss_of(output: Any, batch: Any, loss: Any) -> Tensor:
    """The scalar loss of a batch: the caller's, the output's own, or cross-entropy.

    Raises:
        ValueError: none of them applies.
    """
    if loss is not None:
        value: Tensor = loss(output, batch)
        return value
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if isinstance(labels, Tensor) and not labels.is_floating_point() and isinstance(output, Tensor):
        return nn.functional.cross_entropy(output, labels.long())
    raise ValueError(
        "This recipe needs a loss, and the output has none and the batches are no pairs "
        "(x, integer y). Pass loss=function(output, batch) -> scalar."
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; every module's own flag comes back on any exit."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
