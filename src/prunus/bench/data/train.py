"""A small deterministic trainer, and what a network scores on a test set."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Num
from torch import Generator, Tensor, nn
from torch.nn import functional

from prunus.bench.data.sets import Dataset
from prunus.check import fraction, positive, whole
from prunus.hints import Loss
from prunus.modes import evaluating, private
from prunus.noise import passed
from prunus.parts import LATER, shown
from prunus.progress import progress_bar
from prunus.training.distillation import distillation

__all__ = [
    "TRAINER_VERSION", "Distil", "Training", "accuracy", "cross_entropy", "evaluate", "fit",
]  # fmt: skip

TRAINER_VERSION = 1  # raise it when `fit` gives other weights for the same arguments
EVALUATION_BATCH = 2000


@dataclass(frozen=True)
class Distil:
    """How much of the loss is agreement with a teacher; see `prunus.training.distillation`.

    Attributes:
        temperature: of both softmaxes.
        weight: of the divergence in [0, 1]; the rest is cross-entropy with the labels.
    """

    temperature: float = 4.0
    weight: float = 0.9

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        fraction("weight", self.weight, zero=True, one=True)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained, with cross-entropy.

    Attributes:
        epochs: passes over the training set.
        learning_rate: the highest rate.
        optimizer: Adam with decoupled weight decay, or SGD with Nesterov momentum 0.9.
        batch: samples per step.
        weight_decay: decay per step, times the rate.
        decay: the rate falls along a half cosine to zero, or stays.
        augment: random horizontal flips and crops from a border of four pixels.
        distil: the loss also asks for the outputs of a teacher, which `fit` is given.
    """

    epochs: int
    learning_rate: float
    optimizer: Literal["adam", "sgd"] = "adam"
    batch: int = 128
    weight_decay: float = 0.0
    decay: Literal["cosine", "constant"] = "cosine"
    augment: bool = False
    distil: Distil | None = field(default=None, metadata={LATER: True})
    __repr__ = shown  # task definitions hold it

    def __post_init__(self) -> None:
        whole("epochs", self.epochs, low=0)
        whole("batch", self.batch, low=2)
        positive("learning_rate", self.learning_rate)
        positive("weight_decay", self.weight_decay, zero=True)

    def steps(self, samples: int) -> int:
        """Optimizer steps on so many training samples."""
        return self.epochs * (samples // self.batch if samples >= self.batch else 1)


def fit(
    model: nn.Module,
    data: Dataset,
    training: Training,
    *,
    generator: Generator,
    hold: Callable[[torch.optim.Optimizer], Any] | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    teacher: nn.Module | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Train `model` in place on the training part of `data`; the mode it came in is restored.

    Args:
        model: gives logits (batch, classes); trained on the device it is on.
        data: inputs and labels.
        training: epochs, rate and the rest.
        generator: draws the order of the samples and the augmentation, nothing else is random
            unless the model itself is (dropout).
        hold: called once with the optimizer, for example `pruned.hold`, which then keeps masks
            through every step.
        after_step: called with the model after every step.
        span: the part of the training that is carried out, as shares of its steps, with the samples
            and learning rates that this part has in the whole. The optimizer begins anew.
        teacher: gives the outputs that `training.distil` asks for.
        progress: as in `progress_bar`.

    Returns:
        the same model.

    Raises:
        ValueError: the loss is no longer finite; it names the epoch. Or a training by distillation
            has no teacher.
    """
    loss_of = _loss(training, teacher)
    device = next(model.parameters()).device
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if training.optimizer == "adam":
        optimizer = torch.optim.AdamW(
            trainable, training.learning_rate, weight_decay=training.weight_decay
        )
    else:
        optimizer = torch.optim.SGD(
            trainable,
            training.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=training.weight_decay,
        )
    if hold is not None:
        hold(optimizer)
    count = len(data.x_train)
    steps = training.steps(count)
    first, end = (round(share * steps) for share in span)
    schedule = None
    if training.decay == "cosine" and steps:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler")
            for _ in range(first):  # what comes before the span
                schedule.step()
    was_training = model.training
    model.train()
    try:
        with progress_bar("training", end - first, progress=progress) as advance:
            for epoch in range(training.epochs):
                for i, chosen in enumerate(_epoch(count, training.batch, generator)):
                    if not first <= epoch * (steps // training.epochs) + i < end:
                        continue
                    x, y = data.x_train[chosen], data.y_train[chosen]
                    if training.augment:
                        x = flip_and_crop(x, generator=generator)
                    x, y = x.to(device), y.to(device)
                    loss = loss_of(model(x), (x, y))
                    if not bool(torch.isfinite(loss)):
                        raise ValueError(
                            f"The training loss is {loss.item()} in epoch {epoch + 1}. "
                            f"Lower the learning rate, got {training.learning_rate}."
                        )
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    if schedule is not None:
                        schedule.step()
                    if after_step is not None:
                        after_step(model)
                    advance(1)
    finally:
        model.train(was_training)
    return model


def _loss(training: Training, teacher: nn.Module | None) -> Loss:
    """The loss of outputs and a batch."""
    if training.distil is None:
        return lambda output, batch: functional.cross_entropy(output, batch[1])
    if teacher is None:
        raise ValueError(
            f"{training.distil!r} needs a teacher. Pass teacher=, the network whose outputs count."
        )
    own = training.distil
    return distillation(teacher, temperature=own.temperature, weight=own.weight)


def evaluate(model: nn.Module, data: Dataset) -> dict[str, float]:
    """Scores on the test part of `data`.

    Returns:
        `accuracy` and `test_error` in [0, 1], and `cross_entropy` in nats per sample.
    """
    return _scores(model, data.x_test, data.y_test)


def accuracy(model: nn.Module, x: Num[Tensor, "batch ..."], y: Num[Tensor, " batch"]) -> float:
    """The share of samples whose largest logit is the label's."""
    return _scores(model, x, y)["accuracy"]


def cross_entropy(model: nn.Module, x: Num[Tensor, "batch ..."], y: Num[Tensor, " batch"]) -> float:
    """The mean cross-entropy in nats per sample."""
    return _scores(model, x, y)["cross_entropy"]


def flip_and_crop(
    images: Num[Tensor, "batch channels height width"], *, generator: Generator, border: int = 4
) -> Num[Tensor, "batch channels height width"]:
    """Each image flipped with probability 1/2 and shifted by up to `border`, zeros moving in."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, (border,) * 4)
    down, right = torch.randint(0, 2 * border + 1, (2, count), generator=generator)
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    sample = torch.arange(count)[:, None, None]
    cropped: Tensor = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def _epoch(count: int, batch: int, generator: Generator) -> Iterator[Tensor]:
    """Full batches of a random order; the samples left over wait for the next epoch."""
    order = torch.randperm(count, generator=generator)
    if count < batch:
        yield order
        return
    yield from torch.split(order[: count - count % batch], batch)


def _scores(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else x.device
    dtype = parameters[0].dtype if parameters and x.is_floating_point() else x.dtype
    right, loss = 0, 0.0
    with private(model) as own, evaluating(own, fused=True), torch.no_grad():
        samples, wanted = (torch.split(t, EVALUATION_BATCH) for t in (x, y))
        for i, (inputs, labels) in enumerate(zip(samples, wanted, strict=True)):
            logits = passed(own, partial(own, inputs.to(device, dtype)), i)
            labels = labels.to(device)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(functional.cross_entropy(logits.double(), labels, reduction="sum"))
    share = right / len(y)
    return {
        "accuracy": share,
        "test_error": (len(y) - right) / len(y),
        "cross_entropy": loss / len(y),
    }
