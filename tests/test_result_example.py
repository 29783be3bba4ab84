"""What is kept of an example input, and the example that is made of it."""

import json

import pytest
import torch
from torch import nn

import models
import prunus
from prunus.result.example import InputFacts, example_of, form_of


def made(example):
    form = form_of(example)
    return example_of({k: InputFacts(**f) for k, f in form.items()})


def test_the_form_of_numbers_comes_back():
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(8, 5, 40)
    again = made((x, torch.zeros(8, dtype=torch.long)))  # labels are no input
    assert again.shape == x.shape
    assert again.dtype == x.dtype
    assert not torch.equal(again, x)
    # 1600 draws: five standard errors
    assert abs(float(again.mean()) - float(x.mean())) < 5 * 2 / 40
    assert abs(float(again.std()) - float(x.std())) < 5 * 2 / 56
    assert torch.equal(again, made(x))


def test_tokens_stay_in_their_range_and_constants_are_constant():
    ids = torch.randint(3, 30, (8, 50), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones(8, 50, dtype=torch.long),
             "labels": torch.zeros(8, dtype=torch.long)}  # fmt: skip
    again = made(batch)
    assert set(again) == {"input_ids", "attention_mask"}
    assert torch.equal(again["attention_mask"], batch["attention_mask"])
    assert int(again["input_ids"].min()) >= int(ids.min())
    assert int(again["input_ids"].max()) <= int(ids.max())
    assert len(again["input_ids"].unique()) > 20
    assert made(torch.tensor([[True, False]])).dtype == torch.bool


@pytest.mark.parametrize(
    "example",
    [None, [torch.zeros(2, 3), 1], torch.zeros(2, 3).to_sparse(), torch.zeros(0, 3),
     torch.full((2, 3), float("nan")), {"a": torch.zeros(2, 3), "b": "text"},
     torch.zeros(2, 3, dtype=torch.complex64)],
)  # fmt: skip
def test_what_has_no_such_form_is_not_stored(example):
    batch = (example, None) if isinstance(example, list) else example
    assert form_of((batch,) if isinstance(example, list) else batch) is None


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    ).eval()


@pytest.mark.parametrize("recipe", ["importance-node", "magnitude"])
def test_a_loaded_network_is_compacted_without_an_example(tmp_path, recipe):
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pruned = prunus.prune(net(), recipe, 0.5, data=x)
    pruned.save(tmp_path / "net")
    text = (tmp_path / "net" / "pruned.json").read_text()
    assert json.loads(text)["example"][""]["shape"] == [8, 1, 8, 8]
    loaded = prunus.load(tmp_path / "net", net)
    small = loaded.compact()
    torch.testing.assert_close(small(x), pruned.model(x), atol=1e-5, rtol=1e-4)
    if recipe == "importance-node":
        assert small[0].out_channels == 3
    # a folder of before
    facts = json.loads(text)
    facts.pop("example")
    (tmp_path / "net" / "pruned.json").write_text(json.dumps(facts))
    old = prunus.load(tmp_path / "net", net)
    with pytest.raises(ValueError, match="needs an example batch to trace"):
        old.compact()
    assert old.compact(x)(x).shape == (16, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "torch.quint8"}, "the example's '' has the unknown kind 'torch.quint8'"),
        ({"shape": [2**20, 2**20]}, "the example's '' has 1099511627776 numbers"),
        ({"deviation": -1.0}, "deviation"),
        ({"shape": [-1, 2]}, "shape"),
    ],
)
def test_a_damaged_form_is_named(tmp_path, change, said):
    torch.manual_seed(0)
    model = models.MLP((12, 8, 3))
    prunus.prune(model, "wanda", 0.5, data=torch.randn(9, 12)).save(tmp_path / "net")
    path = tmp_path / "net" / "pruned.json"
    facts = json.loads(path.read_text())
    facts["example"][""].update(change)
    path.write_text(json.dumps(facts))
    with pytest.raises(ValueError) as error:
        prunus.load(tmp_path / "net", model)
    assert str(path) in str(error.value)
    assert said in str(error.value)
