"""The networks of `han2015b-lenet`, trained without samples that are held out."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import TASKS, Task, trainer
from prunus.bench.data.train import TRAINER_VERSION, Training

__all__ = [
    "HELD", "digits_cnn", "digits_mlp", "held_out_task", "lenet5", "lenet300", "part", "resnet20",
]  # fmt: skip

HELD = 5000  # of MNIST's training images


def part(held: int, kind: str, base: Task, *, data_dir: str | Path | None) -> Dataset:
    """The data without the last `held` training samples, or with those as its training part."""
    whole = base.data(data_dir=data_dir)
    own = slice(None, -held) if kind == "train" else slice(-held, None)
    return replace(whole, x_train=whole.x_train[own], y_train=whole.y_train[own])


def held_out_task(
    name: str, base: Task, held: int, training: Training, again: Training, tune: Training
) -> Task:
    """A task of `han2015b_lenet` trained, retrained and tuned so; its last `held` samples apart."""
    said = f"{training!r}, again by {again!r}, values by {tune!r}, {held} held out"
    return Task(
        name=f"prunus.reproduce.han2015b_lenet:{name}",
        title=base.title,
        data=partial(part, held, "train", base),
        held_out=partial(part, held, "held", base),
        model=base.model,
        train=trainer(training),
        retrain=trainer(again),
        tune=trainer(tune),
        definition=f"{said}, trainer {TRAINER_VERSION}",
    )


lenet300 = held_out_task(
    "lenet300",
    TASKS["mnist-lenet300"],
    HELD,
    Training(epochs=10, learning_rate=2e-3, batch=256),
    Training(epochs=6, learning_rate=2e-3, weight_decay=0.5, batch=256),
    Training(epochs=2, learning_rate=2e-4, batch=256),
)
lenet5 = held_out_task(
    "lenet5",
    TASKS["mnist-lenet5"],
    HELD,
    Training(epochs=4, learning_rate=3e-3, batch=256),
    Training(epochs=2, learning_rate=2e-3, weight_decay=0.1, batch=256),
    Training(epochs=1, learning_rate=2e-4, batch=256),
)
digits_mlp = held_out_task(
    "digits_mlp",
    TASKS["digits-mlp"],
    150,
    Training(epochs=30, learning_rate=3e-3, batch=64),
    Training(epochs=6, learning_rate=2e-3, weight_decay=0.1, batch=64),
    Training(epochs=3, learning_rate=2e-4, batch=64),
)
digits_cnn = held_out_task(
    "digits_cnn",
    TASKS["digits-cnn"],
    150,
    Training(epochs=12, learning_rate=1e-2, batch=64),
    Training(epochs=4, learning_rate=2e-3, batch=64),
    Training(epochs=2, learning_rate=2e-4, batch=64),
)
resnet20 = held_out_task(
    "resnet20",
    TASKS["cifar10-resnet20"],
    500,
    Training(
        epochs=6, learning_rate=0.1, optimizer="sgd", batch=128, weight_decay=5e-4, augment=True
    ),
    Training(
        epochs=1, learning_rate=0.02, optimizer="sgd", batch=128, weight_decay=5e-4, augment=True
    ),
    Training(epochs=1, learning_rate=2e-4, augment=True),
)
