"""Layer errors measured in a pass of their own, against those of Gram matrices."""

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.calibration import calibrate, collect
from prunus.engine import errors


class Net(nn.Module):
    """Convolutions with groups, strides and bias, and linear layers called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 12, 3, stride=2, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.twice = nn.Linear(12, 12)
        self.last = nn.Linear(12, 4)

    def forward(self, x):
        x = self.norm(self.two(self.one(x).relu_())).relu().mean((2, 3))
        return self.last(self.twice(self.twice(x).relu()).relu())


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return Net().to(dtype).eval()


def batches(dtype=torch.float64, count=3):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, 8, 8, generator=g, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("recipe", ["magnitude", "magnitude-row", "random-edge", "l1-filter"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_errors_are_those_of_the_gram_matrices(recipe, dtype, rtol, monkeypatch):
    model, data = net(dtype), batches(dtype)
    own = prunus.prune(model, recipe, 0.5, data=data)
    grams = prunus.prune(model, recipe, 0.5, data=calibrate(model, data))
    assert set(own.layers) == set(grams.layers)
    for name, result in own.layers.items():
        assert torch.equal(result.mask, grams.layers[name].mask)
        assert result.error == pytest.approx(grams.layers[name].error, rel=rtol, abs=1e-12)
        assert result.power == pytest.approx(grams.layers[name].power, rel=rtol, abs=1e-12)
        assert result.error > 0 or recipe == "l1-filter"  # removed outputs are no error
    assert own.data_fingerprint == grams.data_fingerprint


@pytest.mark.parametrize("recipe", ["magnitude", "l1-filter"])
def test_no_gram_matrix_is_made_for_a_recipe_that_reads_no_data(recipe, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a statistic was collected")

    monkeypatch.setattr(collect, "collect", refuse)
    monkeypatch.setattr("prunus.calibration.calibrating.collect", refuse)
    model, data = net(), batches()
    pruned = prunus.prune(model, recipe, 0.5, data=data)
    assert all(result.error is not None for result in pruned.layers.values())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_without_measuring_only_the_errors_are_missing():
    model, data = net(), batches()
    with_errors = prunus.prune(model, "magnitude", 0.5, data=data)
    without = prunus.prune(model, "magnitude", 0.5, data=data, measure=False)
    assert all(result.error is None for result in without.layers.values())
    assert without.data_fingerprint == with_errors.data_fingerprint
    for name, result in without.layers.items():
        assert torch.equal(result.weight, with_errors.layers[name].weight)
    seen = prunus.prune(model, "wanda", 0.5, data=data, measure=False)
    assert all(result.error is None for result in seen.layers.values())
    fitted = prunus.prune(model, "magnitude+ls", 0.5, data=data, measure=False)
    assert all(result.error is not None for result in fitted.layers.values())  # it has the Gram


def test_an_iterator_is_read_once():
    model, data = net(), batches()
    once = prunus.prune(model, "magnitude", 0.5, data=iter(data))
    again = prunus.prune(model, "magnitude", 0.5, data=data)
    assert once.layers["two"].error == again.layers["two"].error


def test_layers_that_do_not_run_on_the_example_are_judged_on_all_data():
    class Branch(nn.Module):
        def __init__(self, to: float) -> None:
            super().__init__()
            self.to_reach = to
            self.always, self.rarely = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            x = self.always(x)
            return self.rarely(x) if float(x.detach().abs().max()) > self.to_reach else x

    torch.manual_seed(0)
    data = [torch.randn(4, 6), 100 * torch.randn(4, 6)]
    pruned = prunus.prune(Branch(50.0), "magnitude", 0.5, data=data)
    assert set(pruned.layers) == {"always", "rarely"}
    never = prunus.prune(Branch(1e9), "magnitude", 0.5, data=data)
    assert set(never.layers) == {"always"}
    assert "never ran" in never.not_pruned["rarely"]


def test_later_steps_measure_against_the_network_before_them():
    data = batches()
    model = net()
    recipe = prunus.Recipe(schedule=prunus.recipes["magnitude"].schedule)
    seen = {}

    def train(work, step):
        with torch.no_grad():
            work.last.weight.mul_(2.0)
        seen[step.index] = copy.deepcopy(work)

    from prunus.schedules import Iterative

    recipe = prunus.Recipe(schedule=Iterative(2))
    pruned = prunus.prune(model, recipe, 0.3, data=data, train=train)
    before, after = seen[0].last.weight, pruned.layers["last"].weight
    x = []
    handle = seen[0].last.register_forward_pre_hook(lambda m, args: x.append(args[0]))
    with torch.no_grad():
        for batch in data:
            seen[0](batch)
    handle.remove()
    gap = torch.cat(x) @ (before - after).T
    expected = float(gap.square().sum(1).mean().detach())
    assert pruned.layers["last"].error == pytest.approx(expected, rel=1e-9)


def test_nan_inputs_are_named():
    data = batches()
    data[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="Layer 'one' received NaN or infinite inputs"):
        prunus.prune(net(), "magnitude", 0.5, data=data)


def test_padding_is_left_out():
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Embedding(20, 8), nn.Linear(8, 8)

        def forward(self, input_ids, attention_mask):
            return self.mix(self.embed(input_ids))

    torch.manual_seed(0)
    model = Text().double()
    ids = torch.randint(20, (4, 6))
    mask = (torch.arange(6) < torch.tensor([[6], [4], [2], [5]])).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    pruned = prunus.prune(model, "magnitude", 0.5, data=batch)
    real = model.embed(ids)[mask.bool()]
    gap = real @ (model.mix.weight - pruned.layers["mix"].weight).T
    expected = float(gap.square().sum(1).mean().detach())
    assert pruned.layers["mix"].error == pytest.approx(expected, rel=1e-9)


def test_only_modules_that_are_exactly_ours_go_so():
    from prunus.weights import weight_at

    replaced = nn.Linear(3, 3)
    replaced.forward = lambda x: x
    model = nn.Sequential(nn.Linear(3, 3), replaced, nn.LSTM(3, 2))
    assert errors.shows_its_outputs(weight_at(model, "0"))
    assert not errors.shows_its_outputs(weight_at(model, "1"))
    assert not errors.shows_its_outputs(weight_at(model, "2.weight_ih_l0"))


@pytest.mark.parametrize("size", [1, 2**9, 2**12, 2**40])
def test_samples_may_go_in_pieces(size, monkeypatch):
    model, data = net(), batches()
    whole = prunus.prune(model, "magnitude", 0.5, data=data)
    monkeypatch.setattr(errors, "PIECE_BYTES", size)
    parts = prunus.prune(model, "magnitude", 0.5, data=data)
    for name, result in parts.layers.items():
        assert result.error == pytest.approx(whole.layers[name].error, rel=1e-12)
        assert result.power == pytest.approx(whole.layers[name].power, rel=1e-12)


def test_convolutions_called_with_one_sample():
    class OneByOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return torch.stack([self.last(self.one(sample).mean((1, 2))) for sample in x])

    torch.manual_seed(0)
    model, data = OneByOne().double(), batches()
    own = prunus.prune(model, "magnitude", 0.5, data=data)
    grams = prunus.prune(model, "magnitude", 0.5, data=calibrate(model, data))
    for name, result in own.layers.items():
        assert result.error == pytest.approx(grams.layers[name].error, rel=1e-9)
        assert result.power == pytest.approx(grams.layers[name].power, rel=1e-9)
