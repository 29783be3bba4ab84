"""Edge-popup: counts, fixed weights, what it finds, and what it does not without the sign."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import prunus
from prunus.allocation import Global
from prunus.compensation import LeastSquares
from prunus.granularity import EdgePerRow, Node
from prunus.joint import EdgePopup, JointResult, NetworkJoint, edge_popup
from prunus.recipe import Recipe
from prunus.schedules import Iterative, Refine
from prunus.scores import Constant


def task(seed=0, samples=240):
    """Points in three classes that no line separates, and an untrained network without biases."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator)
    y = ((x[:, 0] * x[:, 1] > 0).long() + (x[:, 2].abs() > 0.8).long()).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(6, 96, bias=False), nn.ReLU(), nn.Linear(96, 48, bias=False), nn.ReLU(),
            nn.Linear(48, 3, bias=False),
        )  # fmt: skip
    return model, x, y


def wrong(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(1) != y).double().mean())


def recipe(**options):
    return replace(prunus.recipes["edge-popup"], selection=EdgePopup(**options))


def quick(**options):
    return recipe(**{"epochs": 30, "batch": 40, "rate": 0.01, **options})


@pytest.mark.parametrize("density", [0.5, 0.25])
def test_an_untrained_subnetwork_does_what_random_ones_do_not(density):
    model, x, y = task()
    found = prunus.prune(model, quick(), density, data=(x, y))
    for result in found.layers.values():
        assert int(result.mask.sum()) == round(density * result.mask.numel())
        fan_in = result.mask.shape[1]
        size = math.sqrt(2 / fan_in) / math.sqrt(float(result.mask.double().mean()))
        kept = result.weight[result.mask]
        torch.testing.assert_close(kept.abs(), torch.full_like(kept, size))
        assert result.notes["steps"] == 30 * 6
    still = prunus.prune(model, quick(epochs=1, rate=1e-9), density, data=(x, y))
    assert wrong(found.model, x, y) < 0.2
    assert wrong(still.model, x, y) > 0.35  # a random mask of the same weights
    same, again, other = (
        prunus.prune(model, quick(epochs=1), density, data=(x, y), seed=seed).masks
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(again[k], mask) for k, mask in same.items())
    assert any(not torch.equal(other[k], mask) for k, mask in same.items())


def test_without_the_sign_of_a_score_nothing_is_learnt(monkeypatch):
    """The negative control: |s| ranked, and the gradient handed to s as it is."""
    model, x, y = task()
    learn = edge_popup._Searched.learn

    def unsigned(self, grad):
        learn(self, grad)
        self.scores.grad = self.used * grad

    right = wrong(prunus.prune(model, quick(), 0.5, data=(x, y)).model, x, y)
    monkeypatch.setattr(edge_popup._Searched, "learn", unsigned)
    assert wrong(prunus.prune(model, quick(), 0.5, data=(x, y)).model, x, y) > right + 0.2


def test_the_first_step_is_the_derivative_of_its_definition(monkeypatch):
    """sign(s) · W · ∂L/∂(W ∘ m), from autograd through a mask that is |s| to the derivative."""
    model, x, y = task(samples=20)
    seen = {}
    learn = edge_popup._Searched.learn

    def spy(self, grad):
        learn(self, grad)
        if self.layer.name not in seen:
            seen[self.layer.name] = (self.scores.clone(), self.scores.grad.clone())

    monkeypatch.setattr(edge_popup._Searched, "learn", spy)
    rule = recipe(weights="kept", epochs=1, batch=20, anneal=False)
    prunus.prune(model, rule, 0.5, data=(x, y))
    scores = {n: s.requires_grad_() for n, (s, _) in seen.items()}
    hidden = x
    for name, layer in model.named_children():
        if name not in scores:
            hidden = layer(hidden)
            continue
        size = scores[name].abs()
        top = size.flatten().topk(size.numel() // 2).indices
        mask = torch.zeros_like(size).flatten().index_fill(0, top, 1.0).view(size.shape)
        hidden = hidden @ (layer.weight.detach() * (mask + size - size.detach())).T
    nn.functional.cross_entropy(hidden, y).backward()
    for name, own in scores.items():
        torch.testing.assert_close(seen[name][1], own.grad)


def test_weights_that_are_kept_are_not_touched():
    model, x, y = task()
    found = prunus.prune(model, quick(weights="kept", epochs=2), 0.4, data=(x, y))
    for name, result in found.layers.items():
        own = model.get_submodule(name).weight.detach()
        assert torch.equal(result.weight, own.masked_fill(~result.mask, 0.0))
    rows = replace(quick(weights="kept", epochs=1), granularity=EdgePerRow())
    counts = prunus.prune(model, rows, 0.5, data=(x, y)).layers["2"].mask.sum(1)
    assert counts.tolist() == [48] * 48


def test_what_is_refused():
    for parts, message in [
        ({"allocation": Global()}, "searches after the counts are planned, so `allocation` must"),
        ({"granularity": Node()}, "removes edges, not nodes"),
        ({"schedule": Refine(2)}, "gives kept weights their values itself"),
        ({"schedule": Iterative(2)}, "searches all layers at once, so it is pruned in one round"),
        ({"inputs": "pruned"}, "searches all layers at once, so it is pruned in one round"),
        ({"compensation": LeastSquares()}, "finds which weights do as they are, so `compensation`"),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe(score=Constant(), selection=EdgePopup(), **parts)
    for options, message in [
        ({"weights": "normal"}, "Unknown weights of EdgePopup 'normal'"),
        ({"epochs": 0}, "`epochs` must be a whole number >= 1"),
        ({"rate": 0.0}, "`rate` must be a finite number > 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            EdgePopup(**options)
    model, x, y = task()
    with pytest.raises(ValueError, match="needs a loss"):
        prunus.prune(model, "edge-popup", 0.5, data=x)
    with pytest.raises(ValueError, match="needs data"):
        prunus.prune(model, "edge-popup", 0.5)
    with pytest.raises(ValueError, match="searches over all layers at once, and blocks="):
        prunus.prune(model, "edge-popup", 0.5, data=(x, y), blocks="auto")
    with pytest.raises(ValueError, match="only once"):
        prunus.prune(model, "edge-popup", 0.5, data=iter([(x, y)]))
    with pytest.raises(ValueError, match="searches on the batches themselves, which a finished"):
        prunus.prune(model, "edge-popup", 0.5, data=prunus.calibrate(model, x))
    assert isinstance(EdgePopup(), NetworkJoint)
    assert prunus.recipes["edge-popup"].needs_labels
    assert "edge-popup+ls" not in prunus.recipes


def test_scores_stay_finite_in_half_precision_where_units_are_dead(monkeypatch):
    model, x, y = task()
    with torch.no_grad():
        model[0].weight[:40].zero_()  # no gradient reaches what they read and feed
    kept = []
    begin = edge_popup._Searched.__init__
    monkeypatch.setattr(
        edge_popup._Searched, "__init__", lambda own, *a: (kept.append(own), begin(own, *a))[1]
    )
    half = model.to(torch.float16)
    found = prunus.prune(half, quick(weights="kept", epochs=3), 0.5, data=(x.half(), y))
    assert all(bool(own.scores.isfinite().all()) for own in kept)
    assert all(result.weight.dtype == torch.float16 for result in found.layers.values())


@dataclass(frozen=True)
class Own(NetworkJoint):
    """A user's search that answers what the test says."""

    answer: str = "right"

    def __call__(self, model, layers, kept, batches, **options):
        found = {}
        for name, counts in kept.items():
            mask = torch.zeros_like(layers[name].weight, dtype=torch.bool)
            mask.view(-1)[: int(counts.sum()) - (self.answer == "fewer")] = True
            if self.answer == "shape":
                mask = mask.T
            weight = mask.float()
            found[name] = JointResult(mask=mask, weight=weight)
        if self.answer == "missing":
            del found["2"]
        return found


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("fewer", "kept 287 weights of layer '0' where 288 were asked for"),
        ("shape", r"mask for layer '0' must have shape \(96, 6\), got \(6, 96\)"),
        ("missing", r"must answer for the layers \['0', '2', '4'\], got \['0', '4'\]"),
    ],
)
def test_the_answer_of_an_own_search_is_held_to_the_counts(answer, message):
    model, x, _ = task()
    own = Recipe(score=Constant(), selection=Own())
    assert prunus.prune(model, own, 0.5, data=x).cost_after.density == 0.5
    with pytest.raises(ValueError, match=message):
        prunus.prune(model, replace(own, selection=Own(answer)), 0.5, data=x)
