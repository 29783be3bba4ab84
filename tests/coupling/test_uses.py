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


class Bypassed(nn.Module):
    """The second layer's weight is used without its module."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 20), nn.Linear(20, 12)
        self.d = nn.Linear(12, 3)

    def forward(self, x):
        h = F.linear(F.relu(self.a(x)), self.b.weight, self.b.bias)
        return self.d(F.relu(self.c(F.relu(h))))


def test_nodes_of_a_layer_whose_module_never_runs():
    torch.manual_seed(0)
    net, x = Bypassed().eval(), torch.randn(40, 6)
    for data in (x, prunus.calibrate(net, x)):  # weights say enough: pruned, its error unknown
        pruned = prunus.prune(net, "importance-node", 0.5, data=data)
        small = pruned.compact(x)
        kept = (small.a.out_features, small.b.out_features, small.c.out_features)
        assert kept == tuple(pruned.plan.kept.values()) < (16, 20, 12)
        assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters
        torch.testing.assert_close(small(x[:3] * 4), pruned.model(x[:3] * 4))
        assert pruned.layers["b"].error is None
        assert pruned.layers["c"].error is not None
    for recipe in ("importance-node+ls", "thinet"):  # what reads its inputs leaves its groups
        pruned = prunus.prune(net, recipe, 0.5, data=x)
        assert set(pruned.plan.kept) == {"c"}
        assert "needs the inputs of b" in pruned.not_pruned["a"]
        assert pruned.compact().c.out_features == pruned.plan.kept["c"] < 12
    with pytest.raises(ValueError, match=r"no nodes to prune .*a, b: .*needs the inputs of b"):
        prunus.prune(net, "thinet", 0.5, data=x, layers=["a", "b"])
