"""Distillation: the dense network's outputs as soft labels of the pruned one's training."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.calibration.batches import call
from prunus.check import fraction, positive
from prunus.hints import Batch, Loss

__all__ = ["distillation"]


def distillation(
    teacher: nn.Module, *, temperature: float = 4.0, weight: float = 0.9, loss: Loss | None = None
) -> Loss:
    """A loss (output, batch) -> scalar that also asks for the teacher's outputs.

    weight · T² · KL(softmax(teacher / T) ‖ softmax(student / T)) + (1 − weight) · loss, the
    divergence a mean over samples, and over positions where the outputs have them: dividing by the
    number of classes too, as `reduction="mean"` does, is a common mistake. T² keeps the gradient's
    size independent of T.

    Args:
        teacher: gives logits (…, classes); copied now, and run without gradient in evaluation mode
            under the caller's autocast.
        temperature: T.
        weight: of the divergence, in [0, 1]; with 1 the batch needs no labels.
        loss: the other term; cross-entropy with the batch's labels where None.

    Returns:
        the loss. A batch is (inputs, labels), a mapping with `labels`, or inputs alone. Positions
        whose label is −100, or whose `attention_mask` is 0, do not count.

    Raises:
        ValueError: T not above 0, a weight outside [0, 1]; when called: outputs of other shapes, or
            no labels where they count.

    References:
        Hinton, Vinyals, Dean (2015), Distilling the knowledge in a neural network, section 2.
    """
    positive("temperature", temperature)
    fraction("weight", weight, zero=True, one=True)
    model = copy.deepcopy(teacher).eval().requires_grad_(requires_grad=False)

    def distilled(output: Any, batch: Batch) -> Tensor:
        own = _logits(output)
        total = own.new_zeros(())
        if weight > 0:
            with torch.no_grad():
                soft = _logits(call(model, batch, None))  # in the training's own state
            total = total + weight * divergence(soft, own, temperature, _counted(batch, own))
        if weight < 1:
            labels = _labels(batch)
            other = loss(output, batch) if loss is not None else _cross_entropy(own, labels)
            total = total + (1 - weight) * other
        return total

    return distilled


def divergence(
    teacher: Tensor, student: Tensor, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over rows that count.

    Args:
        teacher: logits, classes last.
        student: logits of the same shape.
        temperature: T.
        counted: True for the rows that count; all where None.
    """
    if teacher.shape != student.shape:
        raise ValueError(
            f"Teacher and student must give outputs of one shape, got {tuple(teacher.shape)} and "
            f"{tuple(student.shape)}. Distil from the network that was pruned."
        )
    soft = functional.log_softmax(teacher.float() / temperature, -1)
    own = functional.log_softmax(student.float() / temperature, -1)
    rows = functional.kl_div(own, soft, reduction="none", log_target=True).sum(-1)
    if counted is None:
        return temperature**2 * rows.mean()
    return temperature**2 * (rows * counted).sum() / counted.sum().clamp(min=1)


def _logits(output: Any) -> Tensor:
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, tuple | list) else found
    if not isinstance(found, Tensor):
        raise ValueError(
            f"A model for distillation must give logits, or an output with `logits`, got "
            f"{type(output).__name__}."
        )
    return found


def _labels(batch: Batch) -> Tensor | None:
    if hasattr(batch, "get"):
        found = batch.get("labels")
    else:
        found = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    return found if isinstance(found, Tensor) else None


def _counted(batch: Batch, logits: Tensor) -> Tensor | None:
    """The positions of a text that are real; None where all rows count."""
    if not hasattr(batch, "get"):
        return None
    shape = logits.shape[:-1]
    for key, bad in (("labels", -100), ("attention_mask", 0)):
        found = batch.get(key)
        if isinstance(found, Tensor) and found.shape == shape:
            return (found != bad).to(logits.device)
    return None


def _cross_entropy(logits: Tensor, labels: Tensor | None) -> Tensor:
    if labels is None:
        raise ValueError(
            "The batch has no labels, which the other term of the loss needs. Pass (inputs, "
            "labels), a `loss`, or weight=1."
        )
    rows = math.prod(logits.shape[:-1])
    return functional.cross_entropy(
        logits.reshape(rows, -1).float(), labels.to(logits.device).reshape(rows)
    )
