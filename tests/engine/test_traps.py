"""What would mislead in silence is said, or refused before anything is lost."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import models
import prunus
from prunus.budget import Budget
from prunus.cost.latency import Latency
from prunus.rows import state_sum


def setup(*widths):
    torch.manual_seed(0)
    model = models.MLP(widths or (12, 16, 10, 5))
    return model, torch.randn(64, model.layers[0].in_features)


@pytest.mark.parametrize(
    ("recipe", "target", "least"),
    [
        ("importance-node", {"parameters": 10}, "parameters"),
        ("magnitude-row", {"parameters": 10}, "parameters"),
        ("importance-node", {"macs": 3}, "macs"),
        ("magnitude-global", {"bytes": 50}, "bytes"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(recipe, target, least):
    model, x = setup()
    with pytest.raises(ValueError, match=f"^No plan meets the budget of {least}: .* was asked for"):
        prunus.prune(model, recipe, Budget(**target), data=x)


def test_a_latency_that_cannot_be_met_is_refused(monkeypatch):
    """One node per layer was what came of it."""
    from prunus.engine import node_unit

    monkeypatch.setattr(node_unit, "latency_share", lambda *args: lambda counts: 0.6)
    model, x = setup()
    budget = Budget(latency=0.1, example=x)
    with pytest.raises(ValueError, match=r"budget of latency: .* has 0\.6 and 0\.1 was asked for"):
        prunus.prune(model, "importance-node", budget, data=x)


def test_a_budget_is_refused_before_anything_is_trained():
    model, x = setup()
    calls = []
    recipe = replace(prunus.recipes["magnitude"], schedule=prunus.schedules.Iterative(rounds=3))
    with pytest.raises(ValueError, match="No plan meets the budget of parameters"):
        prunus.prune(
            model, recipe, Budget(parameters=33), data=x, train=lambda m, s: calls.append(s)
        )
    assert calls == []


def test_densities_by_layer_say_that_nothing_was_shared_out():
    model, x = setup()
    pruned = prunus.prune(model, "magnitude-global", {"*": 0.2, "layers.2": 0.9})
    densities = {name: round(layer.density, 1) for name, layer in pruned.layers.items()}
    assert densities == {"layers.0": 0.2, "layers.2": 0.9, "layers.4": 0.2}
    assert any("shared nothing out between layers" in note for note in pruned.plan.notes)
    plain = prunus.prune(model, "magnitude", {"*": 0.2, "layers.2": 0.9})
    assert not any("shared nothing" in note for note in plain.plan.notes)


def time(median, spread=0.01):
    return Latency(
        median=median, low=median * (1 - spread), high=median * (1 + spread), level=0.95, runs=99,
        threads=1, batch=64,
    )  # fmt: skip


def test_zeros_in_dense_tensors_are_never_called_faster():
    model, x = setup()
    pruned = prunus.prune(model, "magnitude", 0.1)
    timed = replace(
        pruned,
        cost_before=replace(pruned.cost_before, latency=time(2.0)),
        cost_after=replace(pruned.cost_after, latency=time(1.0)),
    )
    text = " ".join(timed.summary().split())
    assert "no gain: the zeros lie inside dense tensors" in text
    assert "faster" not in text


@pytest.mark.parametrize(
    ("after", "spread", "said"),
    [
        (1.0, 0.01, "faster than the dense network (2.00×, 1.96 to 2.04)"),
        (1.98, 0.001, "not told apart from the dense network (1.01×, 1.01 to 1.01)"),
        (1.0, 0.9, "not told apart from the dense network (2.00×,"),
        (4.0, 0.01, "slower than the dense network (0.50×,"),
    ],
)
def test_words_of_a_measured_latency(after, spread, said):
    model, x = setup()
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    timed = replace(
        pruned,
        cost_before=replace(pruned.cost_before, latency=time(2.0, spread)),
        cost_after=replace(pruned.cost_after, latency=time(after, spread)),
    )
    assert said in " ".join(timed.summary().split())


def test_layer_errors_of_too_few_samples_say_so():
    model, x = setup(30, 20, 5)
    few = prunus.prune(model, "wanda+ls", 0.8, data=x[:10])
    assert "10 samples for up to 24 weights" in few.layers["layers.0"].notes["interpolates"]
    assert "layer error of fewer samples than weights: layers.0" in few.summary()
    enough = prunus.prune(model, "wanda+ls", 0.8, data=x)
    assert "interpolates" not in enough.layers["layers.0"].notes
    unfitted = prunus.prune(model, "wanda", 0.8, data=x[:10])
    assert "interpolates" not in unfitted.layers["layers.0"].notes


VACUOUS = pytest.mark.filterwarnings("ignore::prunus.theory.gap.VacuousWarning")


@VACUOUS
def test_a_certificate_of_other_dense_weights_says_so_first():
    model, x = setup()
    pruned = prunus.prune(model.eval(), "magnitude", 0.5)
    assert pruned.certify(torch.randn(40, 12)).cautions == ()
    with torch.no_grad():
        model.layers[2].bias[3] += 0.5
    found = pruned.certify(torch.randn(40, 12))
    assert len(found.cautions) == 1
    assert found.summary().startswith("CAUTION: the dense network is not the one that was pruned")
    again = type(found).from_json(found.to_json())
    assert again.cautions == found.cautions


def test_what_was_changed_since_is_not_saved_as_the_dense_network(tmp_path):
    model, x = setup()
    pruned = prunus.prune(model, "magnitude", 0.5)
    pruned.save(tmp_path / "a")
    assert prunus.load(tmp_path / "a", model).dense is model
    with torch.no_grad():
        model.layers[0].weight[0, 0] += 1
    pruned.save(tmp_path / "b")
    assert prunus.load(tmp_path / "b", model).dense is None


@VACUOUS
def test_a_certificate_of_a_model_in_training_mode_says_so_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    pruned = prunus.prune(model.eval(), "magnitude", 0.5)
    assert pruned.certify(torch.randn(40, 12)).cautions == ()
    model.train()
    text = pruned.certify(torch.randn(40, 12)).summary()
    assert text.startswith("CAUTION: the model is in training mode, and 1 compute something else")
    assert model.training


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_the_checksum_of_a_state_sees_every_entry(dtype):
    torch.manual_seed(0)
    values = torch.randint(0, 2, (5, 7)).to(dtype)
    model = nn.Module()
    model.register_buffer("values", values)
    seen = {state_sum(model)}
    for i in range(values.numel()):
        flat = values.clone().flatten()
        flat[i] = ~flat[i] if dtype == torch.bool else flat[i] + 1
        model.values = flat.view(5, 7)
        seen.add(state_sum(model))
    assert len(seen) == 1 + values.numel()
    model.values = values
    assert state_sum(model) in seen
    assert re.fullmatch("[0-9a-f]{16}", state_sum(model))


@pytest.mark.parametrize(
    ("metric", "drop", "room"), [("accuracy", 1, 0.9), ("test_error", 0.9, 0.1)]
)
def test_a_drop_that_allows_anything_is_refused(metric, drop, room):
    """1 for one point: what came of it was a network at chance."""
    model, x = setup()
    with pytest.raises(
        ValueError, match=rf"^A drop of {drop} allows any .* a point is 0\.01, or 1%"
    ):
        prunus.prune(
            model, "magnitude", Budget(metric=metric, drop=drop), data=x,
            evaluate=lambda net: {metric: 0.9},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "words"),
    [(None, "got None"), (torch.ones(2, 3), r"got a tensor of shape \(2, 3\)"), ("x", "got x")],
)
def test_what_evaluate_says_is_held_to_numbers(answer, words):
    model, x = setup()
    with pytest.raises(TypeError, match=f"`evaluate` must return a number or a dict.*{words}"):
        prunus.prune(model, "magnitude", 0.5, evaluate=lambda net: answer)
    with pytest.raises(TypeError, match="`evaluate` must be a function"):
        prunus.prune(model, "magnitude", 0.5, evaluate=x)


def test_what_evaluate_says_holds_no_graph():
    """Converting a tensor with a graph warns, and keeping one keeps the network's activations."""
    model, x = setup()
    found = prunus.prune(model, "magnitude", 0.5, evaluate=lambda net: net(x).square().mean())
    assert not found.metrics["before"].requires_grad
    assert "What `evaluate` measures" in found.headline()


def test_an_input_without_its_batch_is_told_with_its_shape():
    """What a layer of torch raises as a ValueError, too."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(ValueError, match=r"could not run on the data: expected 4D.*\(1, 8, 8\)"):
        prunus.prune(net.eval(), "importance-node", 0.5, data=list(torch.randn(3, 1, 8, 8)))


def test_an_own_part_that_fails_says_what_it_is_called_with():
    model, x = setup()

    def own(layer):
        return layer.weight.abs() * layer.gram.diagonal().sqrt()

    with pytest.raises(AttributeError) as caught:
        prunus.prune(model, prunus.Recipe(score=own), 0.5, data=x)
    assert "In your own score" in caught.value.__notes__[0]
    assert "statistics = ('gram',)" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="Or did you mean weight"):
        prunus.prune(model, prunus.Recipe(score=lambda layer: layer.wieght), 0.5)
