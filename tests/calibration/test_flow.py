"""What goes into a calibration, and in what state the model comes out."""

import re
from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from models import build
from prunus.calibration import STATISTICS, calibrate
from prunus.calibration.batches import Batches, first_of, parts
from prunus.calibration.select import matching, prunable

Pair = namedtuple("Pair", "x y")


def exactly(text):
    return f"^{re.escape(text)}$"


def state_of(model):
    return {
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "places": [(t.device, t.dtype) for t in model.state_dict().values()],
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "hooks": [
            len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks)
            for m in model.modules()
        ],
    }


def unchanged(before, after):
    for key in ("modes", "flags", "places", "hooks"):
        assert before[key] == after[key], key
    for old, new in zip(before["grads"], after["grads"], strict=True):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)
    for key, value in before["values"].items():
        assert torch.equal(value, after["values"][key]), key


def used_model():
    """A model in the middle of training: mixed modes, a frozen layer, gradients."""
    model, x = build("cnn-relu")
    model.train()
    model.norm1.eval()
    model.conv1.requires_grad_(False)
    model(x).sum().backward()
    assert any(p.grad is not None for p in model.parameters())
    return model, x


@pytest.mark.parametrize("statistics", [("gram", "mean"), ("grad",), ("max", "grad")])
def test_the_model_comes_back_as_it_was(statistics):
    model, x = used_model()
    before = state_of(model)
    calibrate(model, (x, torch.arange(4) % 4), statistics)
    unchanged(before, state_of(model))


@pytest.mark.parametrize("statistics", [("gram",), ("grad",)])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ZeroDivisionError])
def test_the_model_comes_back_as_it_was_after_an_error(statistics, error):
    model, x = used_model()

    class Fails(nn.Module):
        def forward(self, x):
            raise error("in the middle")

    model.act = Fails()
    before = state_of(model)
    with pytest.raises(error if error is KeyboardInterrupt else ValueError, match="in the middle"):
        calibrate(model, (x, torch.arange(4) % 4), statistics)
    unchanged(before, state_of(model))


def test_a_calibration_does_not_follow_later_training():
    model, x = build("mlp-relu")
    found = calibrate(model, x)
    weight, bias = found["layers.0"].weight.clone(), found["layers.0"].bias.clone()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert torch.equal(found["layers.0"].weight, weight)
    assert torch.equal(found["layers.0"].bias, bias)


def forms(x, y):
    yield "array", x.numpy()
    yield "read-only array", np.frombuffer(x.numpy().tobytes()).reshape(x.shape)
    yield "pair", (x, y)
    yield "named tuple", Pair(x, y)
    yield "mapping", {"x": x}
    yield "mapping of arrays", {"x": x.numpy()}
    yield "user mapping", UserDict(x=x)
    yield "mapping in a pair", ({"x": x}, y)
    yield "list of tensors", [x[:3], x[3:]]
    yield "list of lists", [[x[:3], y[:3]], [x[3:], y[3:]]]
    yield "list with an empty batch", [x[:0], x]
    yield "generator", (part for part in x.split(2))
    yield "loader", torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)


@pytest.mark.parametrize("form", range(13))
def test_forms_of_data(form):
    model, x = build("mlp-relu", samples=7)
    name, data = list(forms(x, torch.arange(7)))[form]
    wanted = calibrate(model, x)
    found = calibrate(model, data)
    assert found.samples == 7, name
    torch.testing.assert_close(found["layers.0"].gram, wanted["layers.0"].gram)


def test_the_fingerprint_is_of_the_numbers_in_order():
    model, x = build("mlp-relu", samples=6)
    once = calibrate(model, x).fingerprint
    assert calibrate(model, x.clone()).fingerprint == once
    assert calibrate(model, x.flip(0)).fingerprint != once
    assert calibrate(model, x[:5]).fingerprint != once


def test_a_one_shot_iterator_is_read_once():
    data = Batches(iter([torch.ones(2, 3), torch.zeros(1, 3)]))
    assert torch.equal(data.peek(), torch.ones(2, 3))
    assert [len(b) for b in data] == [2, 1]
    with pytest.raises(
        ValueError,
        match=exactly(
            "`data` is an iterator that can be read only once, and this recipe needs several "
            "passes. Pass a list of batches or a data loader."
        ),
    ):
        list(data)
    assert [len(b) for b in Batches([torch.ones(2, 3)])] == [2]


def test_parts_keep_batches_whole_that_cannot_be_cut():
    x = torch.arange(10)
    assert [len(p) for p in parts(x, 4)] == [4, 4, 2]
    assert [len(p["a"]) for p in parts({"a": x, "b": x}, 4)] == [4, 4, 2]
    assert [p.x.tolist() for p in parts(Pair(x[:3], x[:3]), 2)] == [[0, 1], [2]]
    assert len(list(parts((x, x[:4]), 2))) == 1
    assert len(list(parts(({"a": x}, x[:4]), 2))) == 1  # tensors inside mappings count
    nested = first_of(({"a": x}, [x, x]), 2)
    assert nested[0]["a"].tolist() == nested[1][1].tolist() == [0, 1]


@pytest.mark.parametrize("limit", [1, 3, 5, 7, 100])
def test_max_samples(limit):
    model, x = build("mlp-relu", samples=7)
    found = calibrate(model, list(x.split(3)), max_samples=limit)
    assert found.samples == min(limit, 7)
    wanted = calibrate(model, x[:limit])
    torch.testing.assert_close(found["layers.2"].gram, wanted["layers.2"].gram)


BAD = {
    "none": (None, "`data` must be batches, got None. Pass a tensor or a data loader."),
    "empty": (torch.ones(0, 12), "`data` must hold at least one sample, got none."),
    "no batches": ([], "`data` must hold at least one sample, got none."),
    "spent": (
        iter([]),
        "`data` must hold at least one sample, got none. It is an iterator, which is empty once it "
        "has been read: pass a list of batches or a data loader.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_are_none(name):
    data, message = BAD[name]
    with pytest.raises(ValueError, match=exactly(message)):
        calibrate(build("mlp-relu")[0], data)


def test_data_of_another_kind():
    model = build("mlp-relu")[0]
    with pytest.raises(TypeError, match=r"^`data` must be a batch \(tensor, .*\) .* got int\.$"):
        calibrate(model, 3)
    with pytest.raises(
        ValueError,
        match=r"^The model could not run on the data: .*\. The input was shape \(4, 13\), dtype "
        r"torch\.float64, device cpu\. Give batches of the width, dtype and kind that "
        r"`model\(input\)` takes\.$",
    ):
        calibrate(model, torch.ones(4, 13, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"could not run on the data: .*dtype.* dtype torch\.float32"
    ):
        calibrate(model, torch.ones(4, 12))
    with pytest.raises(ValueError, match=r"could not run on the data: .*The input was a str\."):
        calibrate(model, ["a word"])
    with pytest.raises(TypeError, match=exactly("`model` must be a torch.nn.Module, got str.")):
        calibrate("model", torch.ones(4, 12))


def test_bad_numbers_name_the_layer():
    model, x = build("mlp-relu")
    x[2, 5] = float("inf")
    message = (
        "Layer 'layers.0' received NaN or infinite inputs. Check the data and the layers before."
    )
    with pytest.raises(ValueError, match=exactly(message)):
        calibrate(model, x)
    model, x = build("mlp-relu")
    model.layers[1] = nn.Threshold(1e9, float("nan"))
    with pytest.raises(ValueError, match=exactly(message.replace("layers.0", "layers.2"))):
        calibrate(model, x)
    model, x = build("mlp-relu")
    with torch.no_grad():
        model.layers[2].weight[1, 3] = float("nan")
    with pytest.raises(
        ValueError,
        match=exactly(
            "`layers.2.weight` must be finite, got nan at index [1, 3] (1 of 160 entries). "
            "Retrain or reload the model."
        ),
    ):
        calibrate(model, x)
    model, x = build("mlp-relu")
    with pytest.raises(
        ValueError,
        match=exactly(
            "Layer 'layers.0' has NaN or infinite gradients. Check the data and the loss."
        ),
    ):
        calibrate(model, x, ("grad",), loss=lambda output, batch: (output * 1e200).pow(4).sum())


def test_arguments():
    model, x = build("mlp-relu")
    for wrong, message in {
        "gramm": "Unknown statistic 'gramm'. Did you mean gram, grad, dense_gram?",
        "cross": "The statistic 'cross' belongs to two models. Use a recipe with inputs='pruned'.",
        (): f"`statistics` must name one or more of {', '.join(STATISTICS)}.",
    }.items():
        with pytest.raises(ValueError, match=exactly(message)):
            calibrate(model, x, wrong)
    for key in ("max_samples", "max_positions"):
        with pytest.raises(
            ValueError, match=exactly(f"`{key}` must be a whole number >= 1, got 0.")
        ):
            calibrate(model, x, **{key: 0})
    assert calibrate(model, x, "mean").statistics == ("mean",)


def test_memory_limit_is_checked_before_the_data_are_read(monkeypatch):
    model, x = build("mlp-relu")
    monkeypatch.setattr("prunus.calibration.collect.GRAM_BYTES", 8 * 13**2)
    with pytest.raises(
        MemoryError,
        match=r"^The statistic 'gram' of layer 'layers\.2' needs 1\.91e-06 GiB, more than the "
        r"limit of 1\.26e-06 GiB\. Exclude the layer, use a recipe that needs less \(`wanda` takes "
        r"the diagonal of the Gram matrix only\), or raise "
        r"prunus\.calibration\.collect\.GRAM_BYTES\.$",
    ):
        calibrate(model, iter(()))  # no data are needed to know it
    assert len(calibrate(model, x, layers="layers.0")) == 1
    assert len(calibrate(model, x, ("diag",))) == 3


def test_layers_that_never_run_are_named():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    model, x = Skips(), torch.ones(2, 3)
    for statistics, data in ((("gram",), x), (("grad",), (x, torch.tensor([0, 1])))):
        found = calibrate(model, data, statistics)
        assert list(found) == ["used"]
        assert found.refused == {"unused": "its forward never ran on the data"}
    with pytest.raises(
        ValueError,
        match=exactly("None of the layers ['unused'] ran on the data. Check the model's forward."),
    ):
        calibrate(model, x, layers="unused")


def reasons(name):
    return prunable(build(name)[0], asked=True)


def test_what_is_prunable():
    assert list(reasons("mlp-relu")[0]) == ["layers.0", "layers.2", "layers.4"]
    found, refused = reasons("tied")
    assert not set(found) & set(refused)
    tied = {name: why for name, why in refused.items() if "tied" in why}
    assert len(tied) == 2  # both places of the tensor
    for name, why in tied.items():
        (other,) = set(tied) - {name}
        assert why == f"its weight is tied to {other}.weight"
    assert list(reasons("transposed")[0]) == ["conv1", "up", "conv2", "conv3"]
    assert list(reasons("lstm")[0]) == [
        "embed", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "fc1", "fc2",
    ]  # fmt: skip
    assert "encoder.layers.0.self_attn.in_proj_weight" in reasons("attention")[0]


def test_one_module_in_two_places_and_weight_norm():
    both = nn.Linear(3, 3)
    found, refused = prunable(nn.ModuleDict({"a": both, "b": both}))
    assert list(found) == ["a"]
    assert not refused
    alone = nn.Linear(3, 3)
    assert list(prunable(alone)[0]) == [""]
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    found, refused = prunable(nn.Sequential(normed))
    assert not found
    assert refused == {
        "0": "its weight is parametrised. Make it plain first with "
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
    }


def test_matching():
    names, refused = ["a.0", "a.1", "b"], {"e": "Embedding has no weight view"}
    assert matching(names, None, None, refused) == names
    assert matching(names, "a.*", "a.1", refused) == ["a.0"]
    assert matching(names, ["b", "a.1"], None, refused) == ["a.1", "b"]
    for given, message in {
        "a.7": "Unknown layer or glob 'a.7'. Did you mean a.1, a.0?",
        "zzz": "Unknown layer or glob 'zzz'. Known: a.0, a.1, b, e.",
        "e": "Layer 'e' cannot be pruned: Embedding has no weight view.",
        "e*": "The model has no prunable layers left to select from (3 found, refused: e: "
        "Embedding has no weight view). Check `layers` and `exclude`.",
    }.items():
        with pytest.raises(ValueError, match=exactly(message)):
            matching(names, given, None, refused)
    with pytest.raises(ValueError, match="no prunable layers left"):
        matching(names, None, "*", {})
