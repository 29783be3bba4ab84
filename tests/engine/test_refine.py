"""Rounds without training: scores of what is left, new values for the dense network's outputs."""

from dataclasses import replace

import pytest
import torch

import prunus
from models import MLP, build
from prunus.allocation import Global
from prunus.calibration.statistics import names_of
from prunus.compensation import LeastSquares
from prunus.engine import step
from prunus.granularity import Edge, Node
from prunus.joint import OBS
from prunus.recipe import Recipe
from prunus.schedules import Refine
from prunus.scores import Magnitude, RemovalError


def by_hand(model, recipe, density, rounds, x):
    """Each round a one-shot pruning of the last one's network; its mask applied to the dense."""
    work, masks = model, {}
    for r in range(rounds):
        part = density ** ((r + 1) / rounds)

        class Nested:
            statistics = recipe.score.statistics

            def __call__(self, layer, masks=masks):
                scores = recipe.score(layer)
                mask = masks.get(f"{layer.name}.weight")
                return scores if mask is None else scores.masked_fill(~mask, -torch.inf)

        once = Recipe(granularity=recipe.granularity, score=Nested(), allocation=recipe.allocation)
        masks = prunus.prune(work, once, part, data=x).masks

        def given(scores, kept, *, layer, generator, masks=masks):
            found = masks[f"{layer.name}.weight"].reshape(scores.shape)
            return prunus.selection.Choice(mask=found)

        # what the mask leaves of the dense network, with the recipe's compensation
        again = Recipe(
            granularity=recipe.granularity, score=recipe.score, selection=given,
            compensation=recipe.compensation,
        )  # fmt: skip
        counts = {k.removesuffix(".weight"): int(m.sum()) for k, m in masks.items()}
        work = prunus.prune(model, again, prunus.Plan(kept=counts), data=x).model
    return work, masks


@pytest.mark.parametrize("compensation", [LeastSquares(), prunus.recipes["wanda"].compensation])
def test_rounds_are_those_made_by_hand(compensation):
    model, x = build("mlp-relu", samples=40)
    recipe = Recipe(
        granularity=Edge(), score=RemovalError(), allocation=Global(), compensation=compensation,
        schedule=Refine(rounds=3),
    )  # fmt: skip
    found = prunus.prune(model, recipe, 0.3, data=x)
    wanted, masks = by_hand(model, recipe, 0.3, 3, x)
    for key, mask in masks.items():
        assert torch.equal(found.masks[key], mask)
    torch.testing.assert_close(found.model(x), wanted(x))
    once = prunus.prune(model, replace(recipe, schedule=prunus.Recipe().schedule), 0.3, data=x)
    assert any(not torch.equal(found.masks[k], once.masks[k]) for k in masks)  # rounds do something


@pytest.mark.parametrize("granularity", [Edge(), Node()])
def test_blocks_of_dense_inputs_give_every_round_what_the_whole_model_gives(granularity):
    """Scores read the network that the rounds before left, new values the dense one's inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = MLP((12, 24, 24, 24, 24, 5)), torch.randn(60, 12)
    recipe = Recipe(
        granularity=granularity, score=RemovalError(), compensation=LeastSquares(),
        schedule=Refine(rounds=3),
    )  # fmt: skip
    whole = prunus.prune(model, recipe, 0.3, data=x)
    blocks = prunus.prune(model, recipe, 0.3, data=x, blocks="layers.*")
    for key, mask in whole.masks.items():
        assert torch.equal(blocks.masks[key], mask), key
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(blocks.model.state_dict()[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", ["dense", "pruned"])
@pytest.mark.parametrize("granularity", [Edge(), Node()])
def test_kept_weights_come_from_the_dense_network_in_every_round(granularity, inputs):
    """Without compensation they are its own; with least squares the error is measured on it."""
    model, x = build("cnn-relu", samples=24)
    own = dict(model.named_parameters())
    recipe = Recipe(granularity=granularity, schedule=Refine(rounds=2), inputs=inputs)
    pruned = prunus.prune(model, recipe, 0.4, data=x)
    for name, result in pruned.layers.items():
        weight = own[f"{name}.weight"].detach().flatten(1)
        assert torch.equal(result.weight, weight.masked_fill(~result.mask, 0.0))
    fitted = replace(recipe, compensation=LeastSquares())
    errors = {}
    for rounds in (1, 2):
        again = prunus.prune(model, replace(fitted, schedule=Refine(rounds=rounds)), 0.4, data=x)
        errors[rounds] = sum(r.error for r in again.layers.values())
        assert bool(torch.isfinite(again.model(x)).all())
    assert errors[2] < 3 * errors[1]  # not the sum of drifting targets, nor nothing
    assert errors[2] > 0.1 * errors[1]


def test_the_dense_statistics_are_collected_once():
    model, x = build("mlp-relu")
    calls = []
    handle = model.register_forward_pre_hook(lambda m, a: calls.append(1))
    recipe = Recipe(score=RemovalError(), schedule=Refine(rounds=4), compensation=LeastSquares())
    prunus.prune(model, replace(recipe, schedule=Refine(rounds=1)), 0.5, data=x)
    once = len(calls)
    calls.clear()
    prunus.prune(model, recipe, 0.5, data=x)
    handle.remove()
    assert len(calls) <= once + 3  # one pass of each later round, over its own network


@pytest.mark.parametrize("compensation", [LeastSquares(), prunus.recipes["wanda"].compensation])
@pytest.mark.parametrize("granularity", [Edge(), Node()])
def test_later_rounds_collect_what_decides_alone(granularity, compensation, monkeypatch):
    """A Gram matrix serves new values and errors, which are those of the first round's network."""
    model, x = build("mlp-relu", samples=40)
    asked, given = [], step.statistics

    def noted(job, work, names, wanted, *, again):
        asked.append(names_of(wanted))
        return given(job, work, names, wanted, again=again)

    monkeypatch.setattr(step, "statistics", noted)
    for score in (Magnitude(), RemovalError()):
        recipe = Recipe(
            granularity=granularity, score=score, compensation=compensation,
            schedule=Refine(rounds=3),
        )  # fmt: skip
        asked.clear()
        found = prunus.prune(model, recipe, 0.4, data=x)
        assert "gram" in asked[0]
        assert asked[1:] == [score.statistics] * 2
        assert all(r.error is not None for r in found.layers.values())


def test_what_rounds_do_not_stand_beside():
    with pytest.raises(ValueError, match=r"gives kept weights their values itself, so `schedule`"):
        Recipe(selection=OBS(), schedule=Refine())
    model, x = build("mlp-relu")
    shared = prunus.calibrate(model, x, ("diag",))
    with pytest.raises(ValueError, match="collects statistics anew at each"):
        prunus.prune(model, Recipe(score=RemovalError(), schedule=Refine(2)), 0.5, data=shared)
