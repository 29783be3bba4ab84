"""Node selections from one Gram, through `prune`."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from consumers import inputs_of, net
from laws.families import class_group
from prunus.calibration import calibrate
from prunus.granularity import Edge, Node
from prunus.imitation import local_form
from prunus.nodes import class_view
from prunus.recipe import Recipe, parse
from prunus.schedules import Refine
from prunus.scores import Constant
from prunus.selection import ForwardNodes, Imitation

NAMES = ("greedy-forward", "greedy-imitation", "greedy-scales", "greedy-global", "forward-node")
STATISTICS = ("gram", "mean", "taylor_gram")


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_nested_over_densities_and_found_once(name, monkeypatch):
    model, x = net("mlp-relu", samples=30)
    calibration = calibrate(model, x, STATISTICS)
    runs = []
    for rule in ("uniform_steps", "line_steps", "refit_steps"):
        plain = getattr(prunus.selection.imitation, rule)
        monkeypatch.setattr(
            f"prunus.selection.imitation.{rule}",
            lambda form, plain=plain, **k: runs.append(1) or plain(form, **k),
        )
    forward = prunus.selection.forward_nodes.forward_trace
    monkeypatch.setattr(
        "prunus.selection.forward_nodes.forward_trace",
        lambda *a, **k: runs.append(1) or forward(*a, **k),
    )
    before = None
    for density in (0.8, 0.5, 0.2):
        pruned = prunus.prune(model, name, density, data=calibration)
        masks = {n: r.mask for n, r in pruned.layers.items()}
        if before is not None:
            assert not any(bool((masks[n] & ~before[n]).any()) for n in masks)
        before = masks
    assert len(runs) == len(calibration.groups)  # one for all densities
    again = prunus.prune(model, name, 0.2, data=x)  # remembers nothing
    assert len(runs) == 2 * len(calibration.groups)
    fitted = prunus.prune(model, f"{name}+ls", 0.2, data=calibration)
    assert len(runs) == 2 * len(calibration.groups)
    for n, r in again.layers.items():
        assert torch.equal(masks[n], r.mask)
        assert torch.equal(masks[n], fitted.layers[n].mask)
        assert fitted.layers[n].scale is None
        torch.testing.assert_close(pruned.layers[n].weight, r.weight)


def test_the_error_of_a_layer_is_that_of_the_form():
    model, x = net("mlp-relu", samples=40)
    calibration = calibrate(model, x, STATISTICS)
    for name in NAMES[:3]:
        pruned = prunus.prune(model, name, 0.4, data=calibration)
        group = calibration.groups[-1]
        (consumer,) = group.consumers
        result = pruned.layers[consumer]
        kept = result.mask.any(0)
        factors = torch.where(kept, result.scale[0], 0.0)
        form = local_form(class_view(group, calibration))
        assert result.error == pytest.approx(form.error(factors), rel=1e-6)
        weight = model.get_submodule(consumer).weight.detach()
        torch.testing.assert_close(
            pruned.model.get_submodule(consumer).weight.detach(), weight * factors
        )


def test_factors_of_two_groups_multiply_on_their_consumer():
    model, x = net("joined", samples=40)
    calibration = calibrate(model, x, STATISTICS)
    left, right = (g for g in calibration.groups if "both" in g.consumers)
    pruned = prunus.prune(model, "greedy-scales", 0.5, data=calibration)
    scale = pruned.layers["both"].scale[0].view(7, 4)
    torch.testing.assert_close(scale, scale[:, :1].expand(7, 4))
    mask = pruned.layers["both"].mask[0].view(7, 4)[:, 0]
    for group, own in ((left, slice(0, 4)), (right, slice(4, 7))):
        rule = Imitation(steps="refit")
        choice = rule(
            torch.zeros(1, group.size),
            torch.tensor([int(mask[own].sum())]),
            layer=class_view(group, calibration),
            generator=torch.Generator(),
        )
        assert torch.equal(choice.mask[0], mask[own])
        torch.testing.assert_close(scale[own, 0].double(), choice.scale[0])
    seen = inputs_of(pruned.model, x, ("fc",))["fc"]
    assert bool(torch.isfinite(seen).all())


@pytest.mark.parametrize("name", ["greedy-scales", "forward-node+ls"])
def test_sequential_choices_aim_at_the_dense_outputs(name):
    """What `prune` chooses for the second group is what the rule says on the sequential form."""
    from reference.sequential import sequential

    model, x = net("cnn-relu", samples=40)
    recipe = replace(prunus.recipes[name], inputs="pruned")
    pruned = prunus.prune(model, recipe, 0.3, data=x)
    dense = prunus.prune(model, name, 0.3, data=x)
    groups = calibrate(model, x, ("gram",)).groups
    second = groups[1]
    work, _ = net("cnn-relu")
    work.load_state_dict(model.state_dict())
    for path in ("conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias", "conv2.weight"):
        work.state_dict()[path].copy_(pruned.model.state_dict()[path])
    # rows of conv2 that its own group removed are there again: the group was not decided yet
    kept = pruned.layers["conv2"].mask.any(1)
    result = pruned.layers["conv2"]
    if "+ls" not in name:
        whole = model.conv2.weight.detach().flatten(1) * result.scale
        whole = whole * result.mask[kept][0]
        work.state_dict()["conv2.weight"].copy_(whole.view_as(model.conv2.weight))
    else:
        first = result.mask[kept][0].expand_as(result.mask)
        bare = prunus.compensation.LeastSquares()
        layer = sequential(model, work, ["conv2"], [x])["conv2"]
        weight, _ = bare(layer, first)
        work.state_dict()["conv2.weight"].copy_(weight.view_as(model.conv2.weight))
    names = list(dict.fromkeys((*second.producers, *second.consumers)))
    view = class_view(second, sequential(model, work, names, [x]))
    choice = recipe.selection(
        torch.zeros(1, second.size), kept.sum()[None], layer=view, generator=torch.Generator()
    )
    assert torch.equal(choice.mask[0], kept)
    assert any(
        not torch.allclose(dense.layers[n].weight, r.weight) for n, r in pruned.layers.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_rounds_and_dead_classes(name):
    model, x = net("mlp-relu", samples=30)
    with torch.no_grad():
        model.layers[0].weight[[1, 5]] = 0.0
        model.layers[0].bias[[1, 5]] = -1.0
    recipe = replace(prunus.recipes[name], schedule=Refine(rounds=2))
    pruned = prunus.prune(model, recipe, 0.6, data=x)
    assert not pruned.layers["layers.2"].mask[:, [1, 5]].any()
    assert all(torch.isfinite(p).all() for p in pruned.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_all_of_density_one_is_the_network_itself(name):
    model, x = net("summed", samples=20)
    pruned = prunus.prune(model, name, 1.0, data=x)
    torch.testing.assert_close(pruned.model(x), model(x))
    assert all(bool(r.mask.all()) for r in pruned.layers.values())


def test_width_one_and_half_precision():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 2)
        )
        x = torch.randn(20, 4)
    for name, dtype in (("forward-node+ls", torch.bfloat16), ("greedy-scales", torch.float32)):
        pruned = prunus.prune(model.to(dtype), name, 0.5, data=x.to(dtype))
        assert {p.dtype for p in pruned.model.parameters()} == {dtype}
        assert bool(torch.isfinite(pruned.model(x.to(dtype))).all())


def test_recipes_are_written_and_read():
    for name in NAMES:
        recipe = prunus.recipes[name]
        assert parse(repr(recipe)) == recipe
        assert not recipe.selection.random


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Imitation(steps="lines"), "Unknown steps of Imitation 'lines'"),
        (lambda: Imitation(metric="loss"), "Unknown metric of Imitation 'loss'"),
        (lambda: Imitation(repeats=True), "`repeats` is for steps='uniform', got steps='refit'"),
        (lambda: Imitation(normalised=1), "`normalised` must be True or False, got 1."),
        (lambda: ForwardNodes(ridge=0.0), "`ridge` must be"),
        (
            lambda: Recipe(granularity=Edge(), score=Constant(), selection=Imitation()),
            "Imitation(steps='refit', metric='local', repeats=False, normalised=True) serves nodes",
        ),
        (
            lambda: Recipe(granularity=Edge(), selection=ForwardNodes()),
            "ForwardNodes(ridge=1e-08) ",
        ),
    ],
)
def test_bad_input_costs_one_line(make, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}") as error:
        make()
    assert "\n" not in str(error.value)


def test_statistics_that_were_not_collected_are_named():
    model, x = net("mlp-relu", samples=20)
    calibration = calibrate(model, x, ("gram",))
    with pytest.raises(
        ValueError, match=r"has no statistic 'taylor_gram', which this method needs"
    ):
        prunus.prune(model, "greedy-global", 0.5, data=calibration)
    with pytest.raises(ValueError, match="data"):
        prunus.prune(model, "forward-node+ls", 0.5)
    assert Recipe(granularity=Node(), selection=ForwardNodes()).statistics == ("gram",)


@pytest.mark.parametrize(
    ("steps", "repeats"),
    [("uniform", False), ("uniform", True), ("line", False), ("refit", False)],
)
def test_classes_that_an_earlier_step_removed_never_come_in(steps, repeats):
    scores = torch.zeros(2, 6)
    scores[:, [0, 3]] = -torch.inf
    rule, group = Imitation(steps=steps, repeats=repeats), class_group(2, 6)
    for kept in range(5):
        counts = torch.full((2,), kept)
        mask = rule(scores, counts, layer=group, generator=torch.Generator()).mask
        assert torch.equal(mask.sum(1), counts)
        assert not mask[:, [0, 3]].any()
