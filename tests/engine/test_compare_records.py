"""`compare(records=path)`: every run is on disk when it is done, and none is run twice."""

import importlib
import json
import math

import pytest
import torch

import models
import prunus
from prunus.engine.runs import FIELDS

NAMES = ["random-edge", "magnitude", "importance-node"]


@pytest.fixture
def setting(monkeypatch):
    """Model, data, an `evaluate` that can be stopped, and how often `prune` ran."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = models.MLP((8, 12, 5)), torch.randn(32, 8)
    module = importlib.import_module("prunus.engine.compare")
    real, ran = module.prune, []
    monkeypatch.setattr(module, "prune", lambda *a, **k: ran.append(a) or real(*a, **k))
    stop = {"at": None, "error": None, "calls": 0}

    def evaluate(pruned):
        stop["calls"] += 1
        if stop["calls"] == stop["at"]:
            raise stop["error"]
        with torch.no_grad():
            return {"gap": float((pruned(x) - model(x)).square().mean()), "odd": math.nan}

    return model, x, evaluate, stop, ran


def plain(records, *left_out):
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "odd", "odd_before", *left_out)}
        for r in records
    ]


@pytest.mark.parametrize(
    ("error", "at"), [(KeyboardInterrupt, 2), (RuntimeError, 4), (SystemExit, 8)]
)
def test_what_was_done_is_kept_and_gone_on_from(setting, tmp_path, error, at):
    model, x, evaluate, stop, ran = setting
    path = tmp_path / "new" / "runs.jsonl"
    given = {"data": x, "evaluate": evaluate, "seeds": 2, "latency": True}
    whole = prunus.compare(model, NAMES, [0.5, 0.25], **given)
    runs = len(ran)
    ran.clear()
    stop |= {"at": at, "error": error, "calls": 0}
    with pytest.raises(error):
        prunus.compare(model, NAMES, [0.5, 0.25], records=path, **given)
    done = len(path.read_text().splitlines())
    assert done == len(ran) - 1 == at - 2  # the dense model is evaluated first
    ran.clear()
    stop["at"] = None
    found = prunus.compare(model, NAMES, [0.5, 0.25], records=path, **given)
    assert len(ran) == runs - done
    assert plain(found.records, "run") == plain(whole.records)
    assert all(math.isnan(r["odd"]) and math.isnan(r["odd_before"]) for r in found.records)
    assert [t["recipe"] for t in found.latencies] == [t["recipe"] for t in whole.latencies]
    before = path.read_bytes()
    ran.clear()
    again = prunus.compare(model, NAMES, [0.5, 0.25], records=path, **given)
    assert ran == []
    assert path.read_bytes() == before
    assert plain(again.records) == plain(found.records)
    assert again.latencies == found.latencies
    assert again.table()[0]["gap"] == whole.table()[0]["gap"]
    assert again.pictures == {}


def test_only_runs_of_this_comparison_are_taken(setting, tmp_path):
    model, x, evaluate, _, ran = setting
    path = tmp_path / "runs.jsonl"

    def runs(names=("magnitude",), net=model, densities=(0.5,), **change):
        ran.clear()
        given = {"data": x, "evaluate": evaluate, "seeds": 1, **change}
        prunus.compare(net, list(names), list(densities), records=path, **given)
        return len(ran)

    other = models.MLP((8, 12, 5))
    assert runs() == 1
    assert runs() == 0
    assert runs(data=x + 1) == 1
    assert runs(layers="layers.0") == 1
    assert runs(net=other) == 1
    assert runs(train=lambda net, step: None) == 1
    assert runs(["magnitude", "wanda"]) == 1
    assert runs(densities=[0.5, prunus.Budget(parameters=100)]) == 1
    assert runs(densities=[prunus.Budget(parameters=100)], seeds=[0]) == 0
    assert runs(["magnitude", "importance-node"]) == 1
    assert runs(["importance-node"], latency=True) == 1  # it was not timed before
    assert runs(["importance-node"], latency=True) == 0
    assert len(path.read_text().splitlines()) == 9


def test_another_evaluate_is_not_mixed_in(setting, tmp_path):
    model, x, _, _, _ = setting
    path = tmp_path / "runs.jsonl"
    level = {"now": 1.0}

    def evaluate(net):
        return {"level": level["now"]}

    given = {"data": x, "evaluate": evaluate, "seeds": 1, "records": path}
    prunus.compare(model, ["magnitude"], [0.5], **given)
    level["now"] = 2.0
    with pytest.raises(ValueError, match=r"runs\.jsonl holds runs in which level .* was 1\.0; now"):
        prunus.compare(model, ["magnitude"], [0.5], **given)
    for odd in (math.nan, math.inf):
        level["now"] = odd
        mine = {**given, "records": tmp_path / f"{odd}"}
        first, second = (prunus.compare(model, ["wanda"], [0.5], **mine) for _ in range(2))
        assert [r["run"] for r in first.records] == [r["run"] for r in second.records]
        assert repr(second.records[0]["level"]) == repr(odd)
        json.loads((tmp_path / f"{odd}").read_text(), parse_constant=pytest.fail)
        json.loads(second.save_records(tmp_path / "b").read_text(), parse_constant=pytest.fail)


def test_files_that_are_no_records(setting, tmp_path):
    model, x, evaluate, stop, _ = setting
    given = {"data": x, "evaluate": evaluate, "seeds": 1}

    def compare(path):
        return prunus.compare(model, ["magnitude"], [0.5], records=path, **given)

    path = tmp_path / "runs.jsonl"
    path.write_text('{"of": "somebody"}\n{"run": "torn')
    compare(path)
    assert path.read_text().startswith('{"of": "somebody"}\n{"run": "')
    assert len(path.read_text().splitlines()) == 2
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 1 is no record .* Remove the line"):
        compare(path)
    stop["calls"] = 0
    with pytest.raises(OSError, match="no file that lines can be added to"):
        compare(tmp_path)
    assert stop["calls"] == 0  # before anything is run


@pytest.mark.parametrize("name", [*sorted(FIELDS), "a_before"])
def test_a_metric_may_not_have_the_name_of_a_field(setting, name):
    model, x, _, _, ran = setting
    with pytest.raises(ValueError, match=f"names a metric '{name}', which is a field"):
        prunus.compare(
            model, ["magnitude"], [0.5], data=x, evaluate=lambda net: {"a": 1.0, name: 2.0}
        )
    assert ran == []


def test_the_fields_are_those_of_the_records(setting, tmp_path):
    model, x, evaluate, _, _ = setting
    path = tmp_path / "runs.jsonl"
    prunus.compare(
        model, ["importance-node"], [0.5], data=x, evaluate=evaluate, seeds=1, records=path,
        latency=True,
    )  # fmt: skip
    found = set(json.loads(path.read_text()))
    assert found == FIELDS | {"gap", "gap_before", "odd", "odd_before"}
