"""What parts of one's own answer wrongly is said in words, and never written into a network."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prunus
from prunus.granularity import Node
from prunus.recipe import Recipe
from prunus.schedules import Step


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def nan_where_kept(layer, mask):
    return torch.full_like(layer.weight, math.nan).masked_fill(~mask, 0.0), layer.bias


def infinite_bias(layer, mask):
    return layer.weight * mask, torch.full((len(layer.weight),), math.inf)


class Rows:
    """Says what `fit` answers itself."""

    def __call__(self, layer, mask):
        return self.fit(layer, mask)[:2]

    def fit(self, layer, mask):
        return layer.weight[:2], layer.bias, None


PARTS: dict[str, tuple[dict[str, Callable[..., object]], type[Exception], str]] = {
    "nan": ({"compensation": nan_where_kept}, ValueError, "gave layer '0' NaN or infinite values"),
    "bias": ({"compensation": infinite_bias}, ValueError, "gave layer '0' NaN or infinite values"),
    "outside": (
        {"compensation": lambda layer, mask: (layer.weight, layer.bias)},
        ValueError,
        "of layer '0' left weights outside the mask",
    ),
    "rows": (
        {"compensation": Rows()},
        ValueError,
        r"weight for layer '0' must have shape \(8, 6\), got \(2, 6\)",
    ),
    "alone": (
        {"compensation": lambda layer, mask: layer.weight * mask},
        TypeError,
        r"must answer with \(weight, bias\), got Tensor",
    ),
    "choice": (
        {"selection": lambda scores, kept, *, layer, generator: scores > 0},
        TypeError,
        "selection must answer with a prunus.selection.Choice, got Tensor",
    ),
    "plan": (
        {"allocation": lambda pools, cost, budget: {}},
        TypeError,
        "allocation must answer with a prunus.Plan, got dict",
    ),
    "complex": (
        {"score": lambda layer: layer.weight + 0j},
        ValueError,
        "score of layer '0' must be real, got torch.complex64",
    ),
    "idle": (
        {"schedule": lambda: [Step(index=0, last=True, budget=None, train=True)]},
        ValueError,
        "has no step that prunes: 1 steps, none with a `budget`",
    ),
    "empty": ({"schedule": lambda: []}, ValueError, "has no step that prunes: 0 steps"),
}


@pytest.mark.parametrize("case", PARTS)
def test_wrong_answers_are_named(case):
    parts, error, message = PARTS[case]
    with pytest.raises(error, match=message):
        prunus.prune(network(), Recipe(**parts), 0.5)


@pytest.mark.parametrize(("compensation", "message"), [
    (nan_where_kept, "gave layer '2' NaN or infinite values"),
    (lambda layer, mask: (layer.weight, layer.bias), "layer '2' left weights outside the mask"),
])  # fmt: skip
def test_wrong_values_of_nodes_are_named(compensation, message):
    recipe = Recipe(granularity=Node(), compensation=compensation)
    with pytest.raises(ValueError, match=message):
        prunus.prune(network(), recipe, 0.5, data=torch.randn(4, 6))


def test_ranks_are_scores():
    """Whole numbers have no −∞ for what was removed or zero before."""
    model = network()
    with torch.no_grad():
        model[0].weight[0, :3] = 0.0
    ranks = Recipe(score=lambda layer: layer.weight.abs().flatten().argsort().argsort().view_as(
        layer.weight))  # fmt: skip
    found = prunus.prune(model, ranks, 0.5)
    for name, result in prunus.prune(model, "magnitude", 0.5).layers.items():
        assert torch.equal(found.layers[name].mask, result.mask)


def test_a_step_goes_no_farther_than_the_budget():
    for budget in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"`budget` must lie in \(0, 1\], got"):
            Step(index=0, last=True, budget=budget, train=True)
