"""Trained networks as factories, for examples on the command line.

    prunus prune prunus.bench.zoo:digits_mlp --recipe magnitude+ls --density 0.2 --data digits

The first call trains; later ones read the cache.
"""

from typing import Any

from torch import nn

from prunus.bench.data.cache import trained
from prunus.bench.data.tasks import task
from prunus.rng import generator_for

__all__ = ["digits_cnn", "digits_mlp", "mnist_mlp", "retrain_digits"]


def digits_mlp() -> nn.Module:
    """The trained network of the task digits-mlp."""
    return _trained("digits-mlp")


def digits_cnn() -> nn.Module:
    """The trained network of the task digits-cnn."""
    return _trained("digits-cnn")


def mnist_mlp() -> nn.Module:
    """The trained network of the task mnist-mlp; reads MNIST as `load_data` does."""
    return _trained("mnist-mlp")


def retrain_digits(model: nn.Module, step: Any) -> None:
    """Train on for a few epochs on the digits; `step.index` chooses the order of the samples."""
    chosen = task("digits-mlp")
    generator = generator_for(0, "retraining", step.index)
    chosen.retrain(
        model, chosen.data(data_dir=None), generator=generator, hold=None, progress=False
    )


def _trained(name: str) -> nn.Module:
    chosen = task(name)
    return trained(chosen, chosen.data(data_dir=None), seed=0).model
