"""Layer errors as a share of what the dense weights make of the inputs."""

import pytest
import torch

import models
import prunus


def setup():
    torch.manual_seed(0)
    model = models.MLP((12, 16, 10, 5)).eval()
    return model, torch.randn(64, 12)


def by_hand(model, pruned, x, *, nodes):
    """‖(W − W′) x + b − b′‖² over ‖W x‖², of the dense network's inputs."""
    found, inputs = {}, x.double()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ReLU):
            inputs = inputs.relu()
        if not isinstance(module, torch.nn.Linear):
            continue
        new = pruned.layers[name]
        w, b = module.weight.detach().double(), module.bias.detach().double()
        lost = inputs @ (w - new.weight.double()).T + (b - new.bias.double())
        full = inputs @ w.T
        rows = new.mask.any(1) if nodes else torch.ones(len(w), dtype=torch.bool)
        found[name] = float(lost[:, rows].square().sum() / full[:, rows].square().sum())
        inputs = full + b
    return found


@pytest.mark.parametrize(
    "recipe", ["magnitude", "wanda", "magnitude+ls", "importance-node", "importance-node+ls", "obs"]
)
def test_they_are_those_counted_by_hand(recipe, tmp_path):
    """By one pass over the data, and from Gram matrices."""
    model, x = setup()
    pruned = prunus.prune(model, recipe, 0.4, data=x)
    known = by_hand(model, pruned, x, nodes="node" in recipe)
    for name, layer in pruned.layers.items():
        assert layer.relative_error == pytest.approx(known[name], rel=1e-4, abs=1e-9), name
        assert layer.relative_error == layer.error / layer.power
        if layer.relative_error > 1e-6:
            assert f"({100 * layer.relative_error:.3g} %)" in repr(layer)
    pruned.save(tmp_path / "net")
    loaded = prunus.load(tmp_path / "net", model)
    assert {n: r.relative_error for n, r in loaded.layers.items()} == {
        n: r.relative_error for n, r in pruned.layers.items()
    }


def test_removing_everything_loses_everything():
    """Zeros for all weights of a layer: 100 %, at any scale of the inputs."""
    model, x = setup()
    for scale in (1e-3, 1.0, 1e3):
        pruned = prunus.prune(model, "magnitude", 0.02, data=scale * x)
        shares = [layer.relative_error for layer in pruned.layers.values()]
        assert 0.5 < min(shares) <= max(shares) < 1.5


def test_without_data_there_is_none():
    model, _ = setup()
    pruned = prunus.prune(model, "magnitude", 0.5)
    assert all(layer.relative_error is None for layer in pruned.layers.values())
    zero = prunus.prune(model, "magnitude", 0.5, data=torch.zeros(8, 12))
    assert zero.layers["layers.0"].relative_error is None  # of nothing there is no share
