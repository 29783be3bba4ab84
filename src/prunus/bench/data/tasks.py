"""What is pruned in the benchmark: a data set, a network, and how it is trained, by name."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, nn

from prunus.ambient import drawing
from prunus.bench.data import language
from prunus.bench.data.models import (
    cifar10_mlp,
    cifar10_resnet20,
    cifar10_vgg,
    digits_cnn,
    digits_mlp,
    fashion_cnn,
    fashion_mlp,
    mnist_lenet5,
    mnist_lenet300,
    mnist_mlp,
)
from prunus.bench.data.sets import Dataset, load_data
from prunus.bench.data.train import TRAINER_VERSION, Distil, Training, evaluate, fit
from prunus.check import unknown
from prunus.rng import generator_for

__all__ = [
    "TASKS",
    "Task",
    "cifar10_mlp",
    "cifar10_resnet20",
    "cifar10_vgg",
    "digits_cnn",
    "digits_mlp",
    "fashion_cnn",
    "fashion_mlp",
    "fresh_model",
    "mnist_lenet5",
    "mnist_lenet300",
    "mnist_mlp",
    "steps_of",
    "task",
    "trainer",
]


@runtime_checkable
class Load(Protocol):
    """Reads a task's data; `data_dir` is the folder the user named."""

    def __call__(self, *, data_dir: str | Path | None) -> Dataset: ...


@runtime_checkable
class Train(Protocol):
    """Trains a model in place; `hold` is called with the optimizer.

    Where it takes a `span` too, schedules may ask it for a part of its training; where it takes a
    `share`, grids may ask it for that share of its epochs (`equal_training`); where it takes
    `distil` and `teacher`, for outputs like the teacher's.
    """

    def __call__(
        self,
        model: nn.Module,
        data: Dataset,
        *,
        generator: Generator,
        hold: Callable[[torch.optim.Optimizer], Any] | None,
        progress: bool | None,
    ) -> object: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark problem; a user's own one is named by import path, `package.module:name`.

    Attributes:
        name: as asked for.
        title: one line for tables.
        data: reads the data set.
        model: makes an untrained network.
        train: trains it from the start.
        retrain: trains it on after pruning.
        tune: trains shared values on (`prunus.export.compress`); as `retrain` where None.
        held_out: reads samples that neither train nor test, as the training part of a data set.
        evaluate: scores on the test part; the key `test_error`, `accuracy` or `perplexity` leads.
        definition: what else, beside the network's architecture, the data and the seed, decides
            the trained weights; part of the checkpoint's identity.
        steps: optimizer steps that `train` takes on a data set; None where it does not say, and
            then no masks can change inside it.
    """

    name: str
    title: str
    data: Load
    model: Callable[[], nn.Module]
    train: Train
    retrain: Train
    evaluate: Callable[[nn.Module, Dataset], Mapping[str, float]] = evaluate
    definition: str = ""
    tune: Train | None = None
    held_out: Load | None = None
    steps: Callable[[Dataset], int] | None = None


def _train(
    model: nn.Module,
    data: Dataset,
    *,
    training: Training,
    generator: Generator,
    hold: Callable[[torch.optim.Optimizer], Any] | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    share: float = 1.0,
    distil: Distil | None = None,
    teacher: nn.Module | None = None,
    progress: bool | None = None,
) -> nn.Module:
    if share != 1.0:
        training = replace(training, epochs=_epochs(training, share))
    if distil is not None:
        training = replace(training, distil=distil)
    return fit(
        model, data, training, generator=generator, hold=hold, span=span, teacher=teacher,
        progress=progress,
    )  # fmt: skip


def trainer(training: Training) -> Train:
    """A task's `train` or `retrain` that trains so, with all that a grid may ask of it."""
    return partial(_train, training=training)


def steps_of(training: Training) -> Callable[[Dataset], int]:
    """A task's `steps` for such a `train`."""
    return partial(_steps, training=training)


def _epochs(training: Training, share: float) -> int:
    """The epochs that are a share of a training.

    Raises:
        ValueError: no whole number.
    """
    found = training.epochs * share
    if abs(found - round(found)) > 1e-6 or round(found) < 1:
        raise ValueError(
            f"{share:.3g} of {training.epochs} epochs are {found:.4g}, no whole number. Choose "
            f"rounds that divide the epochs, or leave equal_training out."
        )
    return round(found)


def _steps(data: Dataset, *, training: Training) -> int:
    return training.steps(len(data.x_train))


def _named(
    name: str,
    title: str,
    data: str,
    model: Callable[[], nn.Module],
    training: Training,
    retraining: Training,
) -> Task:
    return Task(
        name=name,
        title=title,
        data=partial(load_data, data),
        model=model,
        train=trainer(training),
        retrain=trainer(retraining),
        definition=f"{training!r} by trainer {TRAINER_VERSION}",
        steps=steps_of(training),
    )


_DIGITS = Training(epochs=30, learning_rate=3e-3, batch=64)
_DIGITS_AGAIN = Training(epochs=5, learning_rate=1e-3, batch=64)
_IMAGES = Training(epochs=10, learning_rate=2e-3, batch=256)
_IMAGES_AGAIN = Training(epochs=2, learning_rate=5e-4, batch=256)
_CNN = Training(epochs=4, learning_rate=3e-3, batch=128)
_CNN_AGAIN = Training(epochs=1, learning_rate=1e-3, batch=128)
_COLOUR = Training(
    epochs=30,
    learning_rate=0.1,
    optimizer="sgd",
    batch=128,
    weight_decay=5e-4,
    augment=True,
)
_COLOUR_AGAIN = Training(
    epochs=3, learning_rate=0.01, optimizer="sgd", batch=128, weight_decay=5e-4, augment=True
)

TASKS: dict[str, Task] = {
    built.name: built
    for built in (
        _named("digits-mlp", "digits, MLP 64-300-100-10, ReLU", "digits", digits_mlp,
               _DIGITS, _DIGITS_AGAIN),
        _named("digits-cnn", "digits, three convolutions with BN", "digits", digits_cnn,
               Training(epochs=12, learning_rate=1e-2, batch=64), _DIGITS_AGAIN),
        _named("mnist-mlp", "MNIST, MLP 784-500-500-10, sigmoid", "mnist", mnist_mlp,
               _IMAGES, _IMAGES_AGAIN),
        _named("mnist-lenet300", "MNIST, LeNet-300-100", "mnist", mnist_lenet300,
               _IMAGES, _IMAGES_AGAIN),
        _named("mnist-lenet5", "MNIST, LeNet-5", "mnist", mnist_lenet5, _CNN, _CNN_AGAIN),
        _named("fashion-mlp", "Fashion-MNIST, MLP 784-300-100-10, ReLU", "fashion-mnist",
               fashion_mlp, _IMAGES, _IMAGES_AGAIN),
        _named("fashion-cnn", "Fashion-MNIST, three convolutions with BN", "fashion-mnist",
               fashion_cnn, _CNN, _CNN_AGAIN),
        _named("cifar10-mlp", "CIFAR-10, MLP 3072-1000-1000-1000-10, ReLU", "cifar10", cifar10_mlp,
               Training(epochs=10, learning_rate=5e-4, weight_decay=1e-2),
               Training(epochs=2, learning_rate=1e-4, weight_decay=1e-2)),
        _named("cifar10-resnet20", "CIFAR-10, ResNet-20", "cifar10", cifar10_resnet20,
               _COLOUR, _COLOUR_AGAIN),
        _named("cifar10-vgg", "CIFAR-10, small VGG with BN", "cifar10", cifar10_vgg,
               _COLOUR, _COLOUR_AGAIN),
        Task(
            name="tiny-llama",
            title="Python's language reference, Llama of 4 blocks, width 128",
            data=language.python_text,
            model=language.tiny_llama,
            train=partial(language.train, steps=1500, learning_rate=4e-3),
            retrain=partial(language.train, steps=200, learning_rate=5e-4),
            evaluate=language.score,
            definition="1500 steps of 8 windows, rate 4e-3",
        ),
    )
}  # fmt: skip


def task(name: str) -> Task:
    """The task called `name`, or the `Task` at the import path `package.module:name`.

    Raises:
        ValueError: an unknown name, with near matches, or a path that leads to no `Task`.
    """
    if ":" not in name:
        if name not in TASKS:
            raise unknown("task", name, TASKS)
        return TASKS[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"Task {name!r} could not be imported: {error}. Name it package.module:attribute, "
            f"and run in the folder of the package or set PYTHONPATH."
        ) from None
    except Exception as error:  # whatever the user's module does
        words = " ".join(str(error).split())
        raise ValueError(
            f"Task {name!r} could not be imported: {type(error).__name__} in {module}: {words}. "
            f"Mend the module."
        ) from None
    if not isinstance(found, Task):
        raise ValueError(
            f"{name!r} is a {type(found).__name__}, a prunus.bench.Task is needed. Make one."
        )
    return found


def fresh_model(chosen: Task, seed: int) -> nn.Module:
    """The untrained network of a task; its initial weights depend on `seed` and the name alone.

    Factories draw from torch's global generator, so that generator is set aside meanwhile.
    """
    start = generator_for(seed, "initial weights", chosen.name).initial_seed()
    return drawing([torch.default_generator], chosen.model, seed=start)
