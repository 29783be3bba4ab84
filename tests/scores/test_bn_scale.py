"""Network slimming's score: the scales of norms."""

from dataclasses import replace

import pytest
import torch

import prunus
from models import build
from prunus.schedules import Iterative


def test_channels_with_the_largest_scales_stay():
    model, x = build("cnn-relu")
    with torch.no_grad():
        model.norm1.weight.copy_(torch.tensor([0.5, -2.0, 0.1, 1.0, -0.2, 0.3]))
    pruned = prunus.prune(model, "bn-scale", {"conv1": 0.5, "conv2": 0.5}, data=x, exclude="fc1")
    kept = pruned.masks["conv1.weight"].flatten(1).any(1)
    assert kept.tolist() == [True, True, False, True, False, False]
    scales = model.norm2.weight.detach().abs()
    kept = pruned.masks["conv2.weight"].flatten(1).any(1)
    assert scales[kept].min() >= scales[~kept].max()


def test_scales_are_those_of_the_network_as_training_left_it():
    model, x = build("cnn-relu")

    def train(work, step):
        with torch.no_grad():  # the first round's favourites fall behind
            work.norm1.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))

    with torch.no_grad():
        model.norm1.weight.copy_(torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]))
    recipe = replace(prunus.recipes["bn-scale"], schedule=Iterative(rounds=2))
    pruned = prunus.prune(
        model, recipe, {"conv1": 1 / 3}, data=x, train=train, exclude=["fc1", "conv2"]
    )
    kept = pruned.masks["conv1.weight"].flatten(1).any(1)
    assert kept.tolist() == [False, True, True, False, False, False]  # the best two of three


def test_groups_without_a_norm_are_named():
    model, x = build("cnn-relu")
    with pytest.raises(ValueError, match=r"^No norm with a scale acts on the channels of 'fc1'"):
        prunus.prune(model, "bn-scale", 0.5, data=x)
