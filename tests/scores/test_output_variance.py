"""The score of output variances, from raw outputs."""

import pytest
import torch

import prunus
from models import build
from prunus.granularity import Node
from prunus.scores import OutputVariance


def recipe(**changes):
    return prunus.Recipe(granularity=Node(), score=OutputVariance(), **changes)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_the_channels_that_vary_most_stay(inputs):
    model, x = build("cnn-relu", samples=40)
    pruned = prunus.prune(model, recipe(inputs=inputs), 0.5, data=[x[:30], x[30:]])
    with torch.no_grad():
        varies = model.conv1(x).movedim(1, 0).flatten(1).var(1, correction=0)
    kept = pruned.masks["conv1.weight"].flatten(1).any(1)
    assert 0 < kept.sum() < len(kept)
    assert varies[kept].min() > varies[~kept].max()


def test_a_node_that_gives_a_constant_goes_first():
    model, x = build("mlp-relu", samples=60)
    with torch.no_grad():
        model.layers[0].weight[3] *= 1e-3  # its bias, whatever the data
        model.layers[0].bias[3] = 2.0
    for compensation in ("magnitude", "magnitude+ls"):
        own = recipe(compensation=prunus.recipes[compensation].compensation)
        pruned = prunus.prune(model, own, 0.9, data=x, layers="layers.0")
        kept = pruned.masks["layers.0.weight"].any(1)
        assert not kept[3]
        assert 0 < (~kept).sum() < 4
