"""Pruning with training in between: zeros stay, counts fall, rewinding rewinds."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import models
import prunus
from prunus.granularity import Edge, EdgePerRow, Node
from prunus.recipe import Recipe, parse
from prunus.schedules import AtInit, Iterative, OneShot, Refine, Rewinding, steps_of
from prunus.scores import Constant, RemovalError
from prunus.selection import KDPP, RandomK, TopK


def setup(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.MLP((12, 16, 10, 5), **options), torch.randn(64, 12), torch.randint(5, (64,))


def trainer(x, y, *, lr=0.05, steps=5, optimizer="sgd"):
    def train(model, step):
        model.train()
        options = {
            "sgd": lambda p: torch.optim.SGD(
                p, lr=lr, momentum=0.9, weight_decay=0.1, nesterov=True
            ),
            "adamw": lambda p: torch.optim.AdamW(p, lr=lr, weight_decay=0.1),
        }
        optim = options[optimizer](model.parameters())
        for _ in range(steps):
            optim.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optim.step()

    return train


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["magnitude", "wanda+ls", "importance-node+ls", "dpp-edge"])
def test_zeros_stay_zero_through_training(name, optimizer):
    model, x, y = setup(norm=True)
    pruned = prunus.prune(
        model, name, 0.4, data=x, train=trainer(x, y, optimizer=optimizer), evaluate=lambda m: 0.0
    )
    assert set(pruned.metrics) == {"before", "pruned", "trained"}
    state = dict(pruned.model.named_parameters())
    moved = 0
    for key, mask in pruned.masks.items():
        assert not state[key][~mask].any()
        result = pruned.layers.get(key.removesuffix(".weight"))
        if result is not None:
            moved += int((state[key] != result.weight).sum())
    assert moved > 0  # the training did train


def test_hold_works_against_momentum_and_weight_decay_and_lets_go():
    model, x, y = setup()
    pruned = prunus.prune(model, "magnitude", 0.3)
    optim = torch.optim.SGD(pruned.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def steps(n):
        for _ in range(n):
            optim.zero_grad()
            nn.functional.cross_entropy(pruned.model(x), y).backward()
            optim.step()

    def regrown():
        state = dict(pruned.model.named_parameters())
        return sum(int(state[k][~m].count_nonzero()) for k, m in pruned.masks.items())

    with pruned.hold(optim):
        steps(5)
        assert regrown() == 0
        gradient = pruned.model.layers[0].weight.grad
        assert not gradient[~pruned.masks["layers.0.weight"]].any()
    steps(1)  # the negative control: without the hold they grow at once
    assert regrown() > 0


def test_global_hooks_are_gone_after_a_failed_training():
    from torch.optim import optimizer as module

    model, x, y = setup()
    before = len(module._global_optimizer_post_hooks)

    def train(model, step):
        assert len(module._global_optimizer_post_hooks) == before + 1
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        prunus.prune(model, "magnitude", 0.5, train=train)
    assert len(module._global_optimizer_post_hooks) == before


@pytest.mark.parametrize(
    "parts",
    [
        (EdgePerRow(), RemovalError(), TopK()),
        (EdgePerRow(), Constant(), RandomK()),
        (EdgePerRow(), Constant(), KDPP()),
        (Node(), Constant(), RandomK()),
        (Node(), Constant(), KDPP()),
    ],
)
def test_iterative_masks_are_nested_and_reach_the_budget(parts):
    model, x, y = setup()
    granularity, score, selection = parts
    recipe = Recipe(granularity, score, selection=selection, schedule=Iterative(rounds=3))
    seen = []

    def train(model, step):
        trainer(x, y)(model, step)
        seen.append((step.index, {k: v != 0 for k, v in model.named_parameters() if "weight" in k}))

    pruned = prunus.prune(model, recipe, 0.2, data=[x], train=train)
    assert [index for index, _ in seen] == [0, 1, 2]
    for (_, wide), (_, narrow) in pairwise(seen):
        assert all(not (narrow[k] & ~wide[k]).any() for k in wide)
        assert sum(m.sum() for m in narrow.values()) < sum(m.sum() for m in wide.values())
    assert pruned.cost_after.density <= 0.2 + 1e-9
    kept = [sum(int(m.sum()) for m in masks.values()) for _, masks in seen]
    if not isinstance(granularity, Node):
        total = 12 * 16 + 16 * 10 + 10 * 5
        assert kept == pytest.approx([total * 0.2 ** (i / 3) for i in (1, 2, 3)], abs=3)


@pytest.mark.parametrize("schedule", [Iterative(rounds=2), Rewinding(2), Refine(rounds=2)])
@pytest.mark.parametrize("granularity", [Node(), Node(multiple_of=8)])
def test_a_last_round_that_may_spend_more_takes_nothing_back(granularity, schedule):
    """One class of 16 is more than the first round has to remove, and more than the last has."""
    model, x, _ = setup()
    recipe = Recipe(granularity=granularity, schedule=schedule)
    train = (lambda network, step: None) if schedule.trains else None
    pruned = prunus.prune(model, recipe, 0.97, data=x, train=train)
    left = {
        name: int(pruned.model.get_submodule(name).weight.any(1).sum()) for name in pruned.plan.kept
    }
    assert pruned.plan.kept == left
    assert sum(left.values()) < 26
    assert pruned.plan.feasible
    assert pruned.plan.value == pruned.cost_after.density <= 0.97
    small = pruned.compact(x)
    assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters


def test_what_went_of_a_layer_of_zeros_does_not_come_back():
    """Its weights do not tell what an earlier step removed, and a score may change its mind."""
    model, x, y = setup()
    torch.nn.init.zeros_(model.layers[0].weight)
    calls = []

    def score(layer):
        calls.append(layer.name)
        rising = torch.arange(layer.weight.numel()).reshape(layer.weight.shape)
        return rising if calls.count(layer.name) == 1 else -rising

    recipe = Recipe(granularity=Edge(), score=score, schedule=Iterative(rounds=2))
    pruned = prunus.prune(model, recipe, 0.25, layers="layers.0", train=lambda m, step: None)
    size = model.layers[0].weight.numel()
    places = torch.arange(size).reshape(model.layers[0].weight.shape)
    # the first step keeps the upper half, the second the lower half of that
    assert calls == ["layers.0"] * 2
    expected = (places >= size // 2) & (places < 3 * size // 4)
    assert torch.equal(pruned.masks["layers.0.weight"], expected)


def test_rewinding_returns_to_the_start():
    model, x, y = setup()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    entered = []

    def train(model, step):
        entered.append((step, {k: v.clone() for k, v in model.state_dict().items()}))
        trainer(x, y)(model, step)

    pruned = prunus.prune(model, Recipe(schedule=Rewinding(rounds=2)), 0.25, train=train)
    assert [(s.budget, s.rewind) for s, _ in entered] == [(None, False), (0.5, True), (1.0, True)]
    for _, state in entered:
        for key, value in state.items():
            kept = value != 0
            assert torch.equal(value[kept], start[key][kept])
    assert int((entered[2][1]["layers.0.weight"] != 0).sum()) == 48
    assert torch.equal(pruned.model.layers[0].weight != 0, pruned.masks["layers.0.weight"])


def test_at_init_scores_before_any_training():
    model, x, y = setup()
    order = []

    def score(layer):
        order.append("score")
        return layer.weight.abs()

    def train(model, step):
        order.append("train")

    prunus.prune(model, Recipe(score=score, schedule=AtInit(rounds=2)), 0.5, train=train)
    assert order == ["score"] * 6 + ["train"]
    assert [s.budget for s in AtInit(rounds=2)()] == [0.5, 1.0]
    assert next(OneShot()()).last
    with pytest.raises(ValueError, match="`rounds` must be a whole number >= 1, got 0"):
        Iterative(rounds=0)


@pytest.mark.parametrize("kind", ["Iterative", "Rewinding", "AtInit", "Refine"])
def test_schedules_that_nobody_runs_are_refused_where_they_would_be_listed(kind):
    schedule = parse(f"{kind}(rounds={10**9})")
    with pytest.raises(ValueError, match="has more than 10000 steps"):
        steps_of(schedule)
    assert len(steps_of(parse(f"{kind}(rounds=50)"))) in (50, 51)


def test_a_recipe_of_a_billion_rounds_is_refused():
    recipe = Recipe(schedule=Refine(rounds=10**9))
    with pytest.raises(ValueError, match="Give it fewer rounds"):
        prunus.prune(nn.Sequential(nn.Linear(3, 3)), recipe, 0.5)
