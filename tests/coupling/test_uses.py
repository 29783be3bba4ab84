"""Weights that serve two purposes are found, and nothing is fitted to one of them alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
import prunus
from prunus.coupling import used_elsewhere


class Tied(nn.Module):
    """An autoencoder that decodes with its encoder's weight."""

    def __init__(self):
        super().__init__()
        self.enc, self.head = nn.Linear(8, 6), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.linear(torch.relu(self.enc(x)), self.enc.weight.t()))


def test_the_operation_is_named():
    assert used_elsewhere(Tied(), torch.randn(4, 8)) == {"enc": "aten.mm"}


@pytest.mark.parametrize("name", models.ZOO)
def test_the_zoo_uses_its_weights_once(name):
    model, x = models.build(name)
    expected = {"left": "aten.addmm"} if name == "tied" else {}
    assert used_elsewhere(model, x) == expected
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("recipe", ["wanda+ls", "obs", "sparsegpt"])
def test_new_values_are_refused_there(recipe):
    pruned = prunus.prune(Tied().eval(), recipe, 0.5, data=torch.randn(64, 8))
    assert "used outside the layer (by aten.mm)" in pruned.not_pruned["enc"]
    assert set(pruned.layers) == {"head"}


def test_masks_alone_are_not():
    pruned = prunus.prune(Tied().eval(), "wanda", 0.5, data=torch.randn(64, 8))
    assert set(pruned.layers) == {"enc", "head"}


def test_no_layer_left():
    model = nn.Sequential(Tied())
    with pytest.raises(ValueError, match=r"No layer is left that this recipe can prune \(0\.enc: "):
        prunus.prune(model, "wanda+ls", 0.5, data=torch.randn(64, 8), layers="0.enc")
