"""Sequential pruning by kept inputs against its definition, and how often modules run for it."""

import pytest
import torch
from torch import nn

import models
import prunus
from prunus.compensation import LeastSquares, NoCompensation
from prunus.granularity import EdgePerRow, Node
from prunus.modes import evaluating
from prunus.recipe import Recipe
from prunus.scopes import Replay, Replayed, scope_layers
from prunus.scores import RemovalError
from prunus.views import view_of
from prunus.weights import weight_at, weights_of
from reference import sequential as reference


def close(one: torch.Tensor, two: torch.Tensor) -> None:
    # Grams are summed in another order; singular ones carry the rounding into the weights.
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


# The definition is quadratic: one residual network of 20 layers is enough.
EDGES = sorted(set(models.ZOO) - {"resnet20-pad", "cnn-gelu", "cnn-tanh", "mlp-gelu", "mlp-tanh"})


def split(name: str, samples: int = 6, size: int = 4):
    model, x = models.build(name, samples=samples)
    return model, list(x.split(size))


def order_of(model: nn.Module, batch) -> list[str]:
    seen: dict[str, None] = {}
    hooks = [
        weight.module.register_forward_pre_hook(lambda m, a, name=name: seen.setdefault(name))
        for name, weight in weights_of(model).items()
    ]
    with evaluating(model), torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return list(seen)


def passes(model: nn.Module, parts: list, names) -> Replay:
    weights = {name: weight_at(model, name) for name in names}
    calls = dict.fromkeys(names, 1)
    return Replay(model, parts, device=parts[0].device, weights=weights, calls=calls)


def test_sequential_statistics_are_the_moments_of_both_models_inputs():
    dense, x = models.build("cnn-relu", samples=5)
    pruned, _ = models.build("cnn-relu", samples=5)
    with torch.no_grad():
        pruned.conv1.weight[:, 0] = 0
        pruned.norm1.bias += 0.3
    names = ("conv2", "fc1")
    parts = [x[:3], x[3:]]
    bare = {name: weight_at(dense, name).layer() for name in names}
    with passes(dense, parts, names) as one, passes(pruned, parts, names) as two:
        source = Replayed(one, two, parts, x.device)
        found = scope_layers(source, names, base=bare, model=pruned, wanted=["gram"])
    for name in names:
        layer = found[name]
        seen = {}
        for key, model in (("dense", dense), ("pruned", pruned)):
            module = model.get_submodule(name)
            handle = module.register_forward_pre_hook(
                lambda m, args, key=key, seen=seen: seen.__setitem__(
                    key, view_of(m).vectors(m, args[0])[:, 0]
                )
            )
            with torch.no_grad():
                model(x)
            handle.remove()
        d, p = seen["dense"], seen["pruned"]
        n = len(d)
        assert layer.samples == n
        wanted = {
            "gram": p.T @ p / n, "cross": d.T @ p / n, "dense_gram": d.T @ d / n,
            "mean": p.mean(0), "dense_mean": d.mean(0),
        }  # fmt: skip
        for key, value in wanted.items():
            torch.testing.assert_close(getattr(layer, key), value, rtol=1e-11, atol=1e-13)
        assert torch.equal(layer.weight, dense.get_submodule(name).weight.flatten(1))


@pytest.mark.parametrize("network", EDGES)
def test_edges_equal_the_definition(network):
    model, batches = split(network)
    recipe = Recipe(EdgePerRow(), RemovalError(), compensation=LeastSquares(), inputs="pruned")
    pruned = prunus.prune(model, recipe, 0.5, data=batches)
    order = [name for name in order_of(model, batches[0]) if name in pruned.layers]
    assert list(pruned.layers) == order
    kept = {name: torch.tensor(pruned.plan.kept[name]) for name in order}
    work, results = reference.prune_edges(model, recipe, kept, [(n,) for n in order], batches)
    for name in order:
        assert torch.equal(pruned.layers[name].mask, results[name].mask), name
        close(pruned.layers[name].weight, results[name].weight)
        assert pruned.layers[name].error == pytest.approx(results[name].error, rel=1e-6, abs=1e-12)
    for key, value in work.state_dict().items():
        close(pruned.model.state_dict()[key], value)


NODES = [n for n in EDGES if n not in ("tied", "transposed", "attention", "lstm")]


@pytest.mark.parametrize("compensation", [NoCompensation(), LeastSquares()], ids=["none", "ls"])
@pytest.mark.parametrize("network", NODES)
def test_nodes_equal_the_definition(network, compensation):
    model, batches = split(network, samples=12, size=6)
    recipe = Recipe(Node(), RemovalError(), compensation=compensation, inputs="pruned")
    pruned = prunus.prune(model, recipe, 0.4, data=batches)
    groups = [g for g in prunus.calibrate(model, batches).groups if g.name in pruned.plan.kept]
    kept = {g.name: torch.tensor([pruned.plan.kept[g.name]]) for g in groups}
    order = order_of(model, batches[0])
    work, _ = reference.prune_nodes(model, recipe, groups, kept, order, batches)
    for key, value in work.state_dict().items():
        close(pruned.model.state_dict()[key], value)
