"""Pruning modules with several weights: masks, hold, files and reports by their layers' names."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from models import build
from prunus.layer import LinearView, register_view
from prunus.views import Matrix
from prunus.weights import weight_at

LSTM = ("embed", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "fc1", "fc2")


def zeros(model, name):
    return int((weight_at(model, name).matrix() == 0).sum())


@pytest.mark.parametrize("recipe", ["magnitude", "wanda+ls", "sparsegpt", "snip", "random-edge"])
@pytest.mark.parametrize("net", ["lstm", "attention"])
def test_every_matrix_is_pruned_to_its_count(net, recipe):
    model, x = build(net, samples=16)
    labels = torch.arange(16) % 4
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruned = prunus.prune(model, recipe, 0.5, data=[(x, labels)], layers="*")
    assert pruned.not_pruned == {}
    total = 0
    for name, result in pruned.layers.items():
        weight = weight_at(pruned.model, name)
        assert torch.equal(weight.matrix() != 0, result.mask & (weight.matrix() != 0))
        assert torch.equal(weight.mask(pruned.masks), result.mask)
        assert pruned.masks[weight.path].shape == weight.parameter.shape
        assert result.error is not None
        total += int(result.mask.sum())
        if recipe != "snip":
            assert result.density == pytest.approx(0.5, abs=0.5 / result.mask.numel())
    assert pruned.cost_after.density == pytest.approx(0.5, abs=0.01)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    assert sum(r.mask.numel() for r in pruned.layers.values()) == sum(p.numel() for p in matrices)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(pruned.model.state_dict()) == list(before)


def test_errors_are_those_of_the_matrices_alone():
    """W x + b of the recurrent weight, on the hidden states of the dense network."""
    model, x = build("lstm", samples=16)
    pruned = prunus.prune(model, "magnitude", 0.5, data=x, layers="*")
    with torch.no_grad():
        states, _ = model.lstm(model.embed(x))
        states = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1).reshape(-1, 7)
        change = pruned.model.lstm.weight_hh_l0 - model.lstm.weight_hh_l0
        error = (states @ change.T).square().sum(1).mean()
    assert pruned.layers["lstm.weight_hh_l0"].error == pytest.approx(float(error))


def test_least_squares_never_hurts_on_its_inputs():
    for net in ("lstm", "attention"):
        model, x = build(net, samples=40)
        plain, fitted = (
            prunus.prune(model, r, 0.5, data=x, layers="*") for r in ("wanda", "wanda+ls")
        )
        for name, result in fitted.layers.items():
            assert torch.equal(result.mask, plain.layers[name].mask)
            assert result.error <= plain.layers[name].error * (1 + 1e-9), name


@pytest.mark.parametrize("net", ["lstm", "attention"])
def test_masks_are_held_saved_and_loaded(net, tmp_path):
    model, x = build(net, samples=8)
    pruned = prunus.prune(model, "wanda+ls", 0.3, data=x, layers="*")
    dead = {name: zeros(pruned.model, name) for name in pruned.layers}
    pruned.save(tmp_path)
    again = prunus.load(tmp_path, model)
    assert list(again.layers) == list(pruned.layers)
    for name, result in pruned.layers.items():
        assert torch.equal(again.layers[name].mask, result.mask)
        assert torch.equal(again.layers[name].weight, result.weight)
    assert again.cost_after == pruned.cost_after
    optimizer = torch.optim.Adam(pruned.model.parameters(), lr=0.1, weight_decay=0.1)
    with pruned.hold(optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            pruned.model(x).square().mean().backward()
            optimizer.step()
            for name, count in dead.items():
                assert zeros(pruned.model, name) >= count
    assert all(name in pruned.summary() for name in pruned.layers)


@pytest.mark.parametrize("net", ["lstm", "attention"])
def test_sequential_inputs_are_those_of_the_pruned_network(net):
    model, x = build(net, samples=30)
    recipe = replace(prunus.recipes["wanda+ls"], inputs="pruned")
    pruned = prunus.prune(model, recipe, 0.5, data=x, layers="*")
    assert pruned.layers
    assert pruned.not_pruned == {}
    # The mean squared error of the last layer, whose inputs are the pruned network's.
    with torch.no_grad():
        last = {"lstm": "fc2", "attention": "head"}[net]
        error = (pruned.model(x) - model(x)).square().sum(1).mean()
    assert pruned.layers[last].error == pytest.approx(float(error), rel=1e-6)
    if net == "lstm":  # and the hidden states are those of the pruned input weights
        seen = prunus.calibrate(pruned.model, x, layers="*")["lstm.weight_hh_l0"]
        assert seen.samples == 150


def test_densities_by_name_and_selection():
    model, x = build("lstm")
    pruned = prunus.prune(model, "magnitude", {"lstm.*": 0.25, "*": 0.75}, data=x, layers="*")
    assert pruned.layers["lstm.weight_ih_l0"].mask.sum() == 42
    assert pruned.layers["lstm.weight_hh_l0"].mask.sum() == 49
    assert pruned.layers["fc2"].mask.sum() == 24
    some = prunus.prune(model, "magnitude", 0.5, layers="lstm.weight_hh*")
    assert list(some.layers) == ["lstm.weight_hh_l0"]
    assert some.not_pruned == dict.fromkeys((n for n in LSTM if "hh" not in n), "not selected")
    assert list(prunus.prune(model, "magnitude", 0.5, layers="*", exclude="lstm.*").layers) == [
        "embed", "fc1", "fc2",
    ]  # fmt: skip


@pytest.mark.parametrize("net", ["lstm", "attention"])
def test_without_a_request_they_are_left_whole_and_named(net):
    """What a recipe did to such a network, and what its density counted, stays as it was."""
    model, x = build(net, samples=8)
    pruned = prunus.prune(model, "magnitude-global", 0.5, data=x)
    asked = prunus.prune(model, "magnitude-global", 0.5, data=x, layers="*")
    own = set(asked.layers) - set(pruned.layers)
    assert own
    assert all("where `layers` names them" in pruned.not_pruned[name] for name in own)
    assert pruned.cost_after.density == 0.5
    assert set(prunus.calibrate(model, x)) == set(pruned.layers)
    with pytest.raises(ValueError, match=r"the matrices of GRU are .*, as layers='0\.\*' does\)"):
        prunus.prune(nn.Sequential(nn.GRU(8, 16)), "magnitude", 0.5)
    alone = prunus.prune(nn.Sequential(nn.GRU(8, 16)), "magnitude", 0.5, layers="0.*")
    assert list(alone.layers) == ["0.weight_ih_l0", "0.weight_hh_l0"]


def test_a_modules_name_means_all_its_weights():
    model, x = build("lstm")
    both = ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert list(prunus.prune(model, "magnitude", 0.5, layers="lstm").layers) == both
    assert list(prunus.calibrate(model, x, layers="lstm")) == both
    for asked in (None, "*"):
        left = prunus.prune(model, "magnitude", 0.5, layers=asked, exclude="lstm")
        assert list(left.layers) == ["embed", "fc1", "fc2"]
        assert set(left.not_pruned) == set(both)
    density = {"lstm.weight_hh_l0": 0.25, "lstm": 0.5, "*": 1.0}
    some = prunus.prune(model, "magnitude", density, layers="*")
    assert some.layers["lstm.weight_hh_l0"].mask.sum() == 49
    assert some.layers["lstm.weight_ih_l0"].mask.sum() == 84
    assert bool(some.layers["fc1"].mask.all())
    attention, x = build("attention")
    name = "encoder.layers.0.self_attn"
    assert list(prunus.prune(attention, "wanda", 0.5, data=x, layers=name).layers) == [
        f"{name}.in_proj_weight", f"{name}.out_proj",
    ]  # fmt: skip


def test_node_recipes_name_the_matrices_that_they_leave():
    model, x = build("lstm")
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    named = {**pruned.layers, **pruned.not_pruned}
    assert set(LSTM) <= set(named)


def test_a_calibration_that_did_not_watch_them_says_how():
    model, x = build("lstm")
    message = (
        "The calibration lacks layer 'lstm.weight_ih_l0', which this recipe needs. Calibrate with "
        "`layers`, which must name it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        prunus.prune(model, "wanda", 0.5, data=prunus.calibrate(model, x), layers="*")
    found = prunus.calibrate(model, x, layers="*")
    assert len(prunus.prune(model, "wanda", 0.5, data=found, layers="*").layers) == 5
    assert len(prunus.prune(model, "wanda", 0.5, data=found).layers) == 3


class Cross(nn.Module):
    """A decoder that reads another sequence."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x, y):
        return self.out(self.attn(x, y, y)[0])


def test_what_inputs_cannot_show_is_pruned_where_no_statistics_are_needed(tmp_path):
    torch.manual_seed(0)
    model = Cross().eval()
    batch = {"x": torch.randn(6, 3, 8), "y": torch.randn(6, 5, 8)}
    for data in (None, batch, prunus.calibrate(model, batch, layers="*")):
        pruned = prunus.prune(model, "magnitude", 0.5, data=data, layers="*")
        assert list(pruned.layers) == ["attn.in_proj_weight", "attn.out_proj", "out"]
        assert pruned.layers["attn.in_proj_weight"].error is None
        assert (pruned.layers["out"].error is None) == (data is None)
    reason = (
        "it attends from one sequence to another, and one parameter holds the projections of both, "
        "so that one set of statistics does not describe its inputs. Use a recipe without "
        "statistics"
    )
    prunus.calibrate(model, batch, layers="*").save(tmp_path)
    stored = prunus.Calibration.load(tmp_path)
    for data in (batch, stored):
        pruned = prunus.prune(model, "wanda+ls", 0.5, data=data, layers="*")
        assert pruned.not_pruned == {"attn.in_proj_weight": reason}
        assert list(pruned.layers) == ["attn.out_proj", "out"]
    sequential = replace(prunus.recipes["wanda+ls"], inputs="pruned")
    assert prunus.prune(model, sequential, 0.5, data=batch, layers="*").not_pruned == {
        "attn.in_proj_weight": reason
    }


class Experts(nn.Module):
    """Matrices (in, out) in one parameter, each for some of the rows."""

    def __init__(self, count=3):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(count, 4, 6))

    def forward(self, x):
        out = x.new_zeros(len(x), 6)
        for i, w in enumerate(self.gate_up_proj):
            out[i :: len(self.gate_up_proj)] = x[i :: len(self.gate_up_proj)] @ w
        return out


class ExpertsView:
    """One layer for each expert."""

    def matrices(self, module):
        count = len(module.gate_up_proj)
        return [
            Matrix(
                parameter="gate_up_proj",
                view=LinearView(transposed=True),
                index=i,
                bias=None,
                inputs=lambda m, args, kwargs, i=i: args[0][i::count],
                alone=False,
            )
            for i in range(count)
        ]


@pytest.fixture
def experts():
    undo = register_view(Experts, ExpertsView())
    yield
    undo()


def test_slices_of_one_parameter(experts, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), Experts()).double(), torch.randn(60, 5).double()
    names = ["0", *(f"1.gate_up_proj[{i}]" for i in range(3))]
    twins = [nn.Linear(4, 6, bias=False).double() for _ in range(3)]
    with torch.no_grad():
        inputs = model[0](x)
        for i, twin in enumerate(twins):
            twin.weight.copy_(model[1].gate_up_proj[i].T)
    for recipe in ("magnitude", "wanda+ls", "sparsegpt"):
        density = {"0": 1.0, names[1]: 0.25, names[2]: 0.5, names[3]: 0.75}
        pruned = prunus.prune(model, recipe, density, data=x)
        assert list(pruned.layers) == names
        assert pruned.masks["1.gate_up_proj"].shape == (3, 4, 6)
        for i, twin in enumerate(twins):
            alone = prunus.prune(twin, recipe, density[names[i + 1]], data=inputs[i::3])
            result = pruned.layers[names[i + 1]]
            assert torch.equal(result.mask, alone.layers[""].mask)
            torch.testing.assert_close(pruned.model[1].gate_up_proj[i].T, alone.model.weight)
            assert result.error == pytest.approx(alone.layers[""].error)
        assert pruned.cost_after.density == pytest.approx((20 + 6 + 12 + 18) / 92)
        # every slice's zeros save their multiply-adds, not the last one's alone
        costs = pruned.cost_before.macs, pruned.cost_after.macs
        assert costs[1] - 20 == pytest.approx((costs[0] - 20) * 36 / 72, abs=1)
    pruned.save(tmp_path)
    again = prunus.load(tmp_path, model)
    for name in names:
        assert torch.equal(again.layers[name].mask, pruned.layers[name].mask)
    optimizer = torch.optim.SGD(pruned.model.parameters(), lr=0.1, momentum=0.9)
    pruned.hold(optimizer)
    pruned.model(x).square().mean().backward()
    optimizer.step()
    assert int((pruned.model[1].gate_up_proj == 0).sum()) == 72 - 36


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.lstm = nn.Linear(6, 8), nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.lstm(torch.relu(self.enter(x)))[0][:, -1])


def test_a_module_of_several_weights_has_a_density_by_its_name():
    torch.manual_seed(0)
    model, x = Rows().double(), torch.randn(4, 7, 6).double()
    for recipe in ("importance-node", "magnitude"):
        plans = [
            prunus.prune(model, recipe, {name: 0.5}, data=x, layers="*").plan.kept
            for name in ("lstm", "lstm.*")
        ]
        assert plans[0] == plans[1]
        with pytest.raises(ValueError, match=r"layers='lstm\.\*'"):
            prunus.prune(model, recipe, {"lstm": 0.5}, data=x)
