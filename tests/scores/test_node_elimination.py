"""ThiNet and structured OBS against trying and refitting, on raw inputs."""

import itertools
from dataclasses import replace

import pytest
import torch

import prunus
from models import build
from prunus.allocation import Global
from prunus.calibration import calibrate
from prunus.nodes import class_view
from prunus.scores import OBSNode, ThiNet
from prunus.scores.obs_node import rising
from prunus.scores.thinet import joint_costs, removal_steps


def view_and_inputs(network):
    """A group, and (W, vectors, columns of every class) of its consumers, from what they read."""
    model, x = build(network, samples=30)
    calibration = calibrate(model, x, ("gram",))
    group = calibration.groups[0]
    seen = {}
    handles = [
        model.get_submodule(n).register_forward_pre_hook(
            lambda m, a, n=n: seen.__setitem__(n, a[0].detach())
        )
        for n in group.consumers
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    view, parts = class_view(group, calibration), []
    for name in group.consumers:
        module, values = model.get_submodule(name), seen[name]
        weight, (_, place) = module.weight.detach().flatten(1), view.consumers[name]
        if values.ndim == 4:
            assert module.groups == 1
            values = torch.nn.functional.unfold(
                values, module.kernel_size, padding=module.padding, stride=module.stride
            ).movedim(1, -1)
        parts.append((weight, values.reshape(-1, values.shape[-1]), place))
    return view, parts


NETWORKS = ["mlp-relu", "cnn-relu", "resnet20-conv"]


@pytest.mark.parametrize("network", NETWORKS)
def test_joint_costs_are_what_removed_channels_give(network):
    view, parts = view_and_inputs(network)
    costs = joint_costs(view)
    for gone in ([0], [1, 3], [0, 2, 4, 5]):
        given = 0.0
        for weight, vectors, place in parts:
            columns = place[gone].flatten()
            given += float((vectors[:, columns] @ weight[:, columns].T).square().sum(1).mean())
        assert float(costs[gone][:, gone].sum()) == pytest.approx(given, rel=1e-9)


def test_steps_are_the_greedy_ones():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 5, 7):
        half = torch.randn(n, n, generator=generator, dtype=torch.float64)
        costs = half @ half.T
        gone: list[int] = []
        for _ in range(n):
            tried = {
                i: float(costs[[*gone, i]][:, [*gone, i]].sum()) for i in range(n) if i not in gone
            }
            gone.append(min(tried, key=tried.__getitem__))
        assert removal_steps(costs)[gone].tolist() == list(range(n))
    assert removal_steps(torch.zeros(3, 3, dtype=torch.float64)).tolist() == [2, 1, 0]


def refitted(parts, gone):
    """The least error of the consumers' outputs without these classes, all others refitted."""
    total = 0.0
    for weight, vectors, place in parts:
        kept = torch.ones(weight.shape[1], dtype=torch.bool)
        kept[place[gone].flatten()] = False
        target = vectors @ weight.T
        fit = torch.linalg.lstsq(vectors[:, kept], target, driver="gelsd").solution
        total += float((vectors[:, kept] @ fit - target).square().sum(1).mean())
    return total


@pytest.mark.parametrize("network", ["mlp-relu", "cnn-relu"])
def test_each_class_goes_that_the_others_can_make_up_for_best(network):
    view, parts = view_and_inputs(network)
    prices = OBSNode(ridge=1e-12).classes(view)
    gone: list[int] = []
    most = 0.0
    for _ in range(4):
        base = refitted(parts, gone)
        tried = {c: refitted(parts, [*gone, c]) for c in range(len(prices)) if c not in gone}
        best = min(tried, key=tried.__getitem__)
        gone.append(best)
        most = max(most, tried[best] - base)
        assert float(prices[best]) == pytest.approx(most, rel=1e-4, abs=1e-9)
    assert sorted(gone) == sorted(prices.argsort()[:4].tolist())


def test_prices_rise_strictly_along_the_order():
    for losses in ([0.0] * 5, [1.0, 0.5, 2.0, 2.0, 0.0], [1e-200] * 5):
        order = [3, 1, 4, 0, 2]
        scores = rising(order, losses)[order]
        assert all(a < b for a, b in itertools.pairwise(scores.tolist()))
        assert torch.allclose(scores, torch.tensor(losses).double().cummax(0).values, rtol=1e-9)


def test_what_the_scores_are_for():
    """With least squares, structured OBS leaves less error than magnitudes, on average."""
    ratios = []
    for seed in range(5):
        model, _ = build("mlp-relu")
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) / p.shape[-1] ** 0.5
        x = torch.randn(100, 12, generator=generator, dtype=torch.float64)
        gaps = {}
        for name in ("obs-node+ls", "importance-node+ls"):
            pruned = prunus.prune(model, name, 0.5, data=x)
            with torch.no_grad():
                gaps[name] = float((model(x) - pruned.model(x)).square().sum(1).mean())
        ratios.append(gaps["obs-node+ls"] / gaps["importance-node+ls"])
    assert sum(ratios) / 5 < 0.8, ratios


def test_steps_of_different_groups_are_not_compared():
    with pytest.raises(ValueError, match=r"^ThiNet\(\) ranks the nodes of one group, so `alloca"):
        replace(prunus.recipes["thinet"], allocation=Global())
    replace(prunus.recipes["obs-node"], allocation=Global())
    assert ThiNet().statistics == ("gram",)
