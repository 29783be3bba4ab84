"""Scores of activations, from raw inputs and by definition."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from models import build


def recorded(model, name, x):
    """What a layer reads, as it comes."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_largest_mean_activations_stay(activation):
    model, x = build(f"mlp-{activation}", samples=40)
    pruned = prunus.prune(model, "mean-activation", 0.5, data=[x[:30], x[30:]])
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for producer, consumer in itertools.pairwise(layers):
        emitted = recorded(model, consumer, x).abs().mean(0)
        kept = pruned.masks[f"{producer}.weight"].any(1)
        assert kept.sum() < len(kept)
        assert emitted[kept].min() >= emitted[~kept].max()


def test_the_channels_that_are_least_often_zero_stay():
    """Of a convolution's consumer: zeros among the pixels of its patches, padding included."""
    model, x = build("cnn-relu", samples=40)
    pruned = prunus.prune(model, "apoz", 0.5, data=x)
    given = nn.functional.unfold(recorded(model, "conv2", x), 3, padding=1)  # (n, taps, places)
    zeros = (given == 0).double().mean((0, 2)).view(6, 9).mean(1)
    kept = pruned.masks["conv1.weight"].flatten(1).any(1)
    assert kept.sum() < len(kept)
    assert zeros[kept].max() <= zeros[~kept].min()


def test_zeros_that_tell_nothing_are_refused():
    for name in ("mlp-tanh", "cnn-gelu"):  # the convolution's padding is zero, for all alike
        model, x = build(name)
        with pytest.raises(ValueError, match=r"^All nodes of '.*' are zero equally often \(.* so"):
            prunus.prune(model, "apoz", 0.5, data=x)


@pytest.mark.parametrize("name", ["apoz", "mean-activation", "mean-activation+ls"])
def test_sequential_inputs_serve_too(name):
    model, x = build("mlp-relu", samples=40)
    recipe = replace(prunus.recipes[name], inputs="pruned")
    pruned = prunus.prune(model, recipe, 0.5, data=x)
    assert pruned.cost_after.density <= 0.5
