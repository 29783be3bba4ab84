"""`compare`: one calibration, paired masks, records that say what happened."""

import importlib
import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import models
import prunus
from prunus.joint import EdgePopup
from prunus.recipe import Recipe
from prunus.selection import RandomK


def setup():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = models.MLP((12, 16, 10, 5)), torch.randn(64, 12)

    def evaluate(pruned):
        with torch.no_grad():
            return {"gap": float((pruned(x) - model(x)).square().mean()), "zero": 0.0}

    return model, x, evaluate


def test_compare_calibrates_once_and_agrees_with_prune(monkeypatch, tmp_path):
    model, x, evaluate = setup()
    calls = []
    module = importlib.import_module("prunus.engine.calibrated")
    real = module.calibrate
    monkeypatch.setattr(module, "calibrate", lambda *a, **k: calls.append(1) or real(*a, **k))
    names = ["random-edge", "random-edge+ls", "magnitude", "dpp-node+ls", "dpp-edge"]
    found = prunus.compare(
        model, names, [0.5, 0.2], data=x, evaluate=evaluate, seeds=3, latency=True
    )
    assert len(calls) == 1
    assert len(found.records) == 2 * (4 * 3 + 1)  # magnitude draws nothing: once, not three times
    for record in found.records:
        again = prunus.prune(
            model, record["recipe"], record["density"], data=x, seed=record["seed"]
        )
        assert record["gap"] == pytest.approx(evaluate(again.model)["gap"], rel=1e-5)
        assert record["parameters"] == again.cost_after.parameters
        assert record["gap_before"] == 0.0
    plain = [r["gap"] for r in found.records if r["recipe"] == "random-edge"]
    fitted = [r["gap"] for r in found.records if r["recipe"] == "random-edge+ls"]
    assert sum(fitted) < sum(plain)
    assert {(r["recipe"], r["batch"]) for r in found.latencies} == {("dpp-node+ls", 64)}
    assert all(r["speedup_low"] <= r["speedup"] <= r["speedup_high"] for r in found.latencies)
    assert "random-edge+ls" in found.summary()
    path = found.save_records(tmp_path / "records.jsonl")
    lines = path.read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [r["seed"] for r in found.records]
    table = {(row["recipe"], row["density"]): row for row in found.table()}
    assert table["magnitude", 0.5]["standard_error"] is None
    assert table["random-edge", 0.5]["seeds"] == 3


class Asked(nn.Module):
    """All that is pruned only where `layers` names it: recurrence, attention, a bare parameter."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 6, batch_first=True)
        self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
        self.bare = nn.Parameter(torch.randn(5, 6))
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        h, _ = self.rnn(x)
        h, _ = self.mix(h, h, h, need_weights=False)
        return self.fc(functional.linear(h[:, -1], self.bare).relu())


@pytest.mark.parametrize("layers", [["rnn"], ["mix*", "fc"], ["bare", "*"]], ids=str)
def test_layers_that_are_pruned_on_request_are_compared_and_scanned(layers):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Asked().eval(), torch.randn(8, 3, 4)

    def entries(net):
        return sum(float(p.detach().abs().sum()) for p in net.parameters())

    found = prunus.compare(
        model, ["magnitude", "wanda"], [0.5], data=x, evaluate=entries, layers=layers
    )
    for record in found.records:
        alone = prunus.prune(model, record["recipe"], 0.5, data=x, layers=layers)
        assert record[found.metric] == pytest.approx(entries(alone.model))
        assert record["parameters"] == alone.cost_after.parameters < alone.cost_before.parameters
    scan = prunus.sensitivity(model, "wanda", [0.5], data=x, evaluate=entries, layers=layers)
    assert [r["layer"] for r in scan.records] == list(alone.plan.kept)


def test_compare_takes_labels_and_says_what_is_wrong():
    model, x, evaluate = setup()
    recipes = {"mine": Recipe(selection=RandomK()), "theirs": "magnitude"}
    found = prunus.compare(model, recipes, [0.5], data=x, evaluate=evaluate, seeds=[4, 9])
    assert {(r["recipe"], r["seed"]) for r in found.records} == {
        ("mine", 4), ("mine", 9), ("theirs", 4),
    }  # fmt: skip
    with pytest.raises(ValueError, match="must not be empty"):
        prunus.compare(model, [], [0.5], data=x, evaluate=evaluate)
    with pytest.raises(ValueError, match=r"gives \['gap', 'zero'\], not 'loss'"):
        prunus.compare(model, ["magnitude"], [0.5], data=x, evaluate=evaluate, metric="loss")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"recipes": "magnitude"}, TypeError, r"`recipes` must be a list.*Pass \['magnitude'\]"),
        ({"densities": 0.5}, TypeError, "`densities` must be a list of densities, got float"),
        ({"seeds": []}, ValueError, "`seeds` must not be empty"),
        ({"seeds": [3, 3]}, ValueError, r"`seeds` must differ, got \[3, 3\]"),
        ({"seeds": [1.5]}, ValueError, "`seeds` must be a whole number >= 0, got 1.5"),
        ({"evaluate": lambda m: None}, TypeError, "`evaluate` must return a number or a dict"),
        ({"evaluate": lambda m: {}}, ValueError, "`evaluate` returned an empty dict"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    model, x, evaluate = setup()
    given = {"recipes": ["magnitude"], "densities": [0.5], "data": x, "evaluate": evaluate}
    with pytest.raises(error, match=message):
        prunus.compare(model, **{**given, **change})


def test_an_iterator_serves_all_that_need_one_pass_and_no_more():
    model, x, evaluate = setup()
    found = prunus.compare(
        model, ["wanda", "dpp-node"], [0.5], data=iter([x]), evaluate=evaluate, seeds=1,
        latency=True,
    )  # fmt: skip
    whole = prunus.compare(model, ["wanda", "dpp-node"], [0.5], data=x, evaluate=evaluate, seeds=1)
    assert [r["gap"] for r in found.records] == [r["gap"] for r in whole.records]
    assert [r["batch"] for r in found.latencies] == [64]
    again = replace(prunus.recipes["wanda"], inputs="pruned")
    with pytest.raises(ValueError, match="an iterator that can be read only once"):
        prunus.compare(model, [again], [0.5], data=iter([x]), evaluate=evaluate, seeds=1)


def test_a_search_over_all_layers_reads_the_batches_beside_the_shared_statistics():
    model, x, evaluate = setup()
    y = torch.arange(64) % 5
    popup = replace(prunus.recipes["edge-popup"], selection=EdgePopup(epochs=2))
    found = prunus.compare(
        model, {"popup": popup, "wanda": "wanda"}, [0.5], data=(x, y), evaluate=evaluate, seeds=1
    )
    alone = prunus.prune(model, popup, 0.5, data=(x, y))
    assert found.records[0]["gap"] == evaluate(alone.model)["gap"]
