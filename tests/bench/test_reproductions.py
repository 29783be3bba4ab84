"""The reproductions of pruning papers: the paper's counts, both protocols, and a small run."""

from dataclasses import replace

import pytest
import torch

from prunus.bench import Training, fit
from prunus.bench.models import mlp
from prunus.cli.reproduce import reproduce
from prunus.engine import prune
from prunus.reproduce import REPRODUCTIONS, acharyya2021, acharyya2021_mnist, reproduction, save
from prunus.reproduce.acharyya2021 import edge_count, emitting, node_count, run


def test_counts_are_the_papers():
    percents = range(10, 100, 10)
    nodes = [node_count(p / 100, 784, 500, 500) for p in percents]
    assert nodes == [225, 255, 286, 316, 347, 377, 408, 438, 469]
    assert [edge_count(p / 100, 784) for p in (10, 20, 50)] == [79, 157, 392]
    assert edge_count(0.7, 10) == 7  # not 8 by 0.7 · 10 = 7.000000000000001


def test_a_unit_that_still_emits_adds_a_constant():
    torch.manual_seed(0)
    names = torch.nn.Sequential()
    for name, module in (
        ("fc1", torch.nn.Linear(5, 8)),
        ("act", torch.nn.Sigmoid()),
        ("fc2", torch.nn.Linear(8, 3)),
    ):
        names.add_module(name, module)
    x = torch.randn(50, 5)
    pruned = prune(names, "random-node", 0.5, data=x, layers="fc1")
    both = emitting(names, pruned)
    kept = pruned.masks["fc1.bias"].bool()
    assert 0 < int(kept.sum()) < 8
    constant = names.fc2.weight[:, ~kept] @ torch.sigmoid(names.fc1.bias[~kept])
    torch.testing.assert_close(both(x), pruned.model(x) + constant)
    assert float(constant.detach().abs().max()) > 0.01


def shortly(model, data, *, generator, hold=None, progress=None):
    short = Training(epochs=15, learning_rate=3e-3, batch=64)
    return fit(model, data, short, generator=generator, progress=False)


def thin():
    return mlp((64, 60, 30, 10))


def test_a_small_run_has_every_method_and_both_protocols(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    given = {}
    monkeypatch.setattr(
        acharyya2021_mnist, "run", lambda setting, **rest: given.update(setting=setting, **rest)
    )
    acharyya2021_mnist.reproduce(scale="small", seed=0, data_dir=None, progress=False)
    setting = given.pop("setting")
    chosen = replace(setting.task, train=shortly, model=thin, definition="short")
    tiny = replace(setting, task=chosen, densities=(0.3,), seeds=range(2), published={
        "random edge": {30: 4.21}}, published_dense=3.67)  # fmt: skip
    result = run(tiny, **given)
    found = {(row["method"], row["reweighted"]): row for row in result.rows}
    assert len(found) == 6 * 2 + 3
    errors = {key: row["test_error_percent"] for key, row in found.items()}
    # Reweighting lowers the layer's error always, the test error on the whole and where it is high.
    names = list(acharyya2021.methods("median"))
    assert sum(errors[n, "yes"] for n in names) < sum(errors[n, "no"] for n in names)
    assert errors["random edge", "yes"] < errors["random edge", "no"]
    assert errors["importance edge", "yes"] < errors["random edge", "no"]
    row = found["random edge", "yes"]
    assert row["published"] == 4.21
    assert row["published_excess"] == pytest.approx(0.54)
    assert row["low"] < row["test_error_percent"] < row["high"]
    assert found["random edge", "no"]["published"] is None
    files = {path.name for path in save(result, tmp_path / "out")}
    assert "acharyya2021-mnist-excess.png" in files
    assert len(files) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["acharyya2021-mnist", "acharyya2021-cifar", "han2015-lenet"])
def test_small_reproductions_run(tmp_path, monkeypatch, name):
    assert name in REPRODUCTIONS
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    result = reproduction(name)(scale="small", seed=0, data_dir=None, progress=False)
    assert result.name == name
    assert len({tuple(row) for row in result.rows}) == 1  # the same columns in every row
    save(result, tmp_path / "out")
    for row in result.rows:
        print(row)


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(tmp_path, monkeypatch):
    def never(**options):
        raise AssertionError("it ran")

    monkeypatch.setattr("prunus.reproduce.han2015_lenet.reproduce", never)
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(NotADirectoryError):
        reproduce("han2015-lenet", out=taken / "out", full=False, seed=0, data_dir=None)
