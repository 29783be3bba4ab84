"""What must not matter to a pruning, and what each field of a layer's result says."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import models
import prunus
from prunus.compensation import LeastSquares
from prunus.granularity import EdgePerRow
from prunus.recipe import Recipe
from prunus.scores import Constant, RemovalError
from prunus.selection import Proportional, RandomK

DETERMINISTIC = ["magnitude", "magnitude-global", "wanda+ls", "sparsegpt", "obs", "importance-node"]


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.randn(96, 10, dtype=torch.float64)
        return models.MLP((10, 12, 9, 4)).double(), x @ torch.randn(10, 10, dtype=torch.float64)


def linear_layers(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def same_weights(one, other, **tolerance):
    for a, b in zip(linear_layers(one.model), linear_layers(other.model), strict=True):
        assert torch.equal(a.weight != 0, b.weight != 0)
        torch.testing.assert_close(a.weight, b.weight, **tolerance)


@pytest.mark.parametrize("recipe", DETERMINISTIC)
def test_names_of_layers_do_not_matter(recipe):
    model, x = network()
    renamed = nn.Sequential(OrderedDict((f"z{9 - i}", m) for i, m in enumerate(model.layers)))
    one, other = (prunus.prune(m, recipe, 0.4, data=x) for m in (model, renamed))
    same_weights(one, other)
    assert [r.error for r in one.layers.values()] == [r.error for r in other.layers.values()]


@pytest.mark.parametrize("recipe", ["wanda+ls", "sparsegpt", "obs", "importance-node+ls"])
def test_the_unit_of_the_inputs_does_not_matter(recipe):
    """A relative ridge: inputs a thousand times larger, first weights a thousandth of them."""
    model, x = network()
    scaled, _ = network()
    with torch.no_grad():
        linear_layers(scaled)[0].weight /= 1024
    one = prunus.prune(model, recipe, 0.4, data=x)
    other = prunus.prune(scaled, recipe, 0.4, data=1024 * x)
    with torch.no_grad():
        linear_layers(other.model)[0].weight *= 1024
    same_weights(one, other, rtol=1e-8, atol=1e-10)
    for name, result in one.layers.items():
        assert other.layers[name].ridge == result.ridge
        assert other.layers[name].error == pytest.approx(result.error, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
@pytest.mark.parametrize("ways", ["batches", "order", "twice"])
def test_how_the_samples_come_does_not_matter(ways, inputs):
    model, x = network()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    data = {"batches": [x[:7], x[7:40], x[40:]], "order": x[order], "twice": [x, x]}[ways]
    recipe = Recipe(EdgePerRow(), RemovalError(), compensation=LeastSquares(), inputs=inputs)
    one, other = (prunus.prune(model, recipe, 0.4, data=d) for d in (x, data))
    same_weights(one, other, rtol=1e-7, atol=1e-9)
    for name, result in one.layers.items():
        assert other.layers[name].error == pytest.approx(result.error, rel=1e-7)


class Reads(nn.Module):
    """Two layers at each position, which read the positions that the mask leaves."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, attention_mask=None):
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
def test_padding_counts_in_no_statistic_whatever_the_batch(inputs):
    """Sequential statistics too: whatever stands at padding, and however long it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Reads().double()
        rows = torch.randn(11, 4, 6, dtype=torch.float64)
    recipe = Recipe(EdgePerRow(), RemovalError(), compensation=LeastSquares(), inputs=inputs)
    found = []
    for length, filler in ((4, 0.0), (7, 0.0), (7, 1e6)):
        x = torch.full((11, length, 6), filler, dtype=torch.float64)
        x[:, :4] = rows
        mask = (torch.arange(length) < 4).expand(11, -1).long()
        batches = [{"x": x[:5], "attention_mask": mask[:5]},
                   {"x": x[5:], "attention_mask": mask[5:]}]  # fmt: skip
        found.append(prunus.prune(model, recipe, 0.5, data=batches))
    for other in found[1:]:
        same_weights(found[0], other, rtol=1e-8, atol=1e-10)
        for name, result in found[0].layers.items():
            assert other.layers[name].error == pytest.approx(result.error, rel=1e-8)


RECIPES = {
    "wanda+ls": "wanda+ls",
    "sparsegpt": "sparsegpt",
    "random, rescaled": Recipe(EdgePerRow(), Constant(), selection=RandomK(rescaled=True)),
    "proportional": Recipe(EdgePerRow(), RemovalError(), selection=Proportional()),
    "intercept": Recipe(
        EdgePerRow(), RemovalError(), compensation=LeastSquares(ridge=1e-3, intercept=True)
    ),
    "nodes": "importance-node+ls",
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_a_layers_result_is_what_it_says(name):
    model, x = network()
    pruned = prunus.prune(model, RECIPES[name], 0.5, data=x)
    inputs = {}
    for key in pruned.layers:
        layer = model.get_submodule(key)
        layer.register_forward_pre_hook(lambda m, a, key=key: inputs.__setitem__(key, a[0]))
    with torch.no_grad():
        model(x)
    for key, result in pruned.layers.items():
        dense, sparse = model.get_submodule(key), pruned.model.get_submodule(key)
        assert result.name == key
        assert torch.equal(result.mask, pruned.masks[f"{key}.weight"])
        assert torch.equal(result.weight, sparse.weight)
        assert not result.weight[~result.mask].any()
        assert result.density == int(result.mask.sum()) / result.mask.numel()
        torch.testing.assert_close(result.bias, sparse.bias, rtol=0, atol=0)
        rows = result.mask.any(1)
        with torch.no_grad():
            before, after = dense(inputs[key]), sparse(inputs[key])
        gap = (before - after)[:, rows]
        if result.error is not None:
            assert result.error == pytest.approx(float(gap.square().sum(1).mean()), rel=1e-7)
        else:
            assert "gram" not in pruned.recipe.statistics
        columns = result.mask.any(0)
        fits = name in ("wanda+ls", "intercept") or (name == "nodes" and not bool(columns.all()))
        if fits:
            assert result.ridge == (1e-3 if name == "intercept" else 1e-8)
        if name in ("random, rescaled", "proportional"):
            kept = result.mask
            torch.testing.assert_close(
                result.weight[kept], (dense.weight * result.scale)[kept], rtol=1e-12, atol=0
            )
            assert (result.scale[kept] >= 1).all()
        else:
            assert result.scale is None
        if name == "random, rescaled":  # 1 / P(kept)
            chance = result.mask.sum(1, keepdim=True) / result.mask.shape[1]
            torch.testing.assert_close(result.scale, (1 / chance).expand_as(result.scale).double())
        if name == "intercept":  # the mean output is that of the dense layer
            torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-9, atol=1e-9)
            assert not torch.equal(sparse.bias, dense.bias)
