"""The compact network is smaller, and computes what the one with zeros computes."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import models
from prunus.coupling import couple
from prunus.surgery import CompactionError, compact
from prunus.surgery.pinned import PinnedChannels
from prunus.surgery.verify import verify_equal


def zero(model: nn.Module, group, units: list[int], roles: tuple[str, ...] = ("in", "out")):
    """Make the members of some classes zero."""
    state = model.state_dict()
    for unit in units:
        for m in group.classes[unit]:
            if m.role in roles:
                state[m.parameter].select(m.axis, m.index).zero_()


def weights_of(group, units: list[int], model: nn.Module):
    """Make the rows of the producers' weights zero; biases and norms stay."""
    for unit in units:
        for m in group.classes[unit]:
            name, _, leaf = m.parameter.rpartition(".")
            if m.role == "out" and leaf == "weight" and name in group.producers:
                model.state_dict()[m.parameter].select(m.axis, m.index).zero_()


def half(group) -> list[int]:
    """A fixed half of the classes, at least one of them left."""
    order = torch.randperm(group.size, generator=torch.Generator().manual_seed(group.size))
    return sorted(order[: group.size // 2].tolist())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def warning(written: bool):
    """That channels stay, where the code writes their number down."""
    return pytest.warns(PinnedChannels, match="stay") if written else contextlib.nullcontext()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", models.ZOO)
def test_node_masks(name, dtype):
    """Every removed class is gone, and the outputs agree to 1e-5 (float64: 1e-12)."""
    model, x = models.build(name)
    model, x = model.to(dtype), x.to(dtype)
    groups = couple(model, x).groups
    expected: dict[tuple[str, int], int] = {}
    for group in groups:
        if group.exact:
            zero(model, group, half(group))
        for slot in group.slots:
            key = slot.parameter, slot.axis
            expected.setdefault(key, model.state_dict()[slot.parameter].shape[slot.axis])
            if group.exact and not group.written:
                gone = torch.isin(slot.unit, torch.tensor(half(group)))
                expected[key] -= int(gone.sum())
    with warning(any(group.written for group in groups)):
        small = compact(model, x)
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    with torch.no_grad():
        masked = model(x)
        assert (small(x) - masked).abs().max() <= rtol * masked.abs().max()
    state = small.state_dict()
    assert {key: state[key[0]].shape[key[1]] for key in expected} == expected


@pytest.mark.parametrize("name", ["mlp-norm", "cnn-relu", "resnet20-pad", "resnet20-conv", "mixed"])
def test_node_masks_in_training_mode(name):
    """Batch norms normalise each channel on its own, so both modes agree, gradients too."""
    model, x = models.build(name)
    for group in couple(model, x).groups:
        zero(model, group, half(group))
    with warning(name == "resnet20-pad"):
        small = compact(model, x)
    model.train(), small.train()
    assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
    model.eval(), small.eval()  # the running statistics have moved alike
    assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", [f"mlp-{a}" for a in models.ACTIVATIONS] + ["mlp-norm", "mlp-no-bias", "cnn-pool"]
)
def test_constant_units_are_folded(name):
    """Zero rows leave σ(bias) or a norm's shift flowing; the consumer's bias takes it over."""
    model, x = models.build(name)
    groups = couple(model, x).groups
    for group in groups:
        weights_of(group, half(group), model)
    small = compact(model, x)
    for group in groups:
        weight = small.get_parameter(f"{group.producers[0]}.weight")
        assert len(weight) == group.size - len(half(group))
    other = torch.randn_like(x)
    assert_close(small(other), model(other), rtol=1e-10, atol=1e-10)


def test_folding_adds_a_bias():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3, bias=False)

        def forward(self, x):
            return self.b(torch.sigmoid(self.a(x)))

    model = Net()
    model.b.weight.requires_grad_(False)
    with torch.no_grad():
        model.a.weight[2] = 0
    small = compact(model, torch.randn(5, 4))
    assert small.a.out_features == small.b.in_features == 5
    expected = model.b.weight[:, 2] * torch.sigmoid(model.a.bias[2])
    assert_close(small.b.bias.detach(), expected.detach())
    assert not small.b.bias.requires_grad
    assert model.b.bias is None


def test_constant_units_stay_where_a_consumer_pads_with_zeros():
    """ReLU(0.7) is no constant at a zero-padded border; ReLU(−0.7) = 0 is."""
    model, x = models.build("cnn-relu")
    with torch.no_grad():
        model.conv1.weight[:3] = 0
        model.conv1.bias[:3] = model.norm1.running_mean[:3]
        model.norm1.bias[:3] = torch.tensor([0.7, -0.7, -0.1])
    small = compact(model, x)
    assert small.conv1.out_channels == 4
    assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    model.conv2.padding_mode = "circular"  # without zeros at the border all three can go
    model.conv2._reversed_padding_repeated_twice = [1, 1, 1, 1]
    small = compact(model, x)
    assert small.conv1.out_channels == 3
    assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


def test_zero_norm_weights_cut_a_unit_off():
    """Slimming sets γ = 0: the unit emits its shift although its filter is not zero."""
    model, x = models.build("cnn-pool")
    with torch.no_grad():
        model.features[1].weight[[1, 4]] = 0
    small = compact(model, x)
    assert small.features[0].out_channels == 4
    assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


def test_zero_norm_weights_beside_a_path_around_the_norm():
    """y + norm(y) still depends on the input; a ReLU that is dead on the example hides it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x):
            y = F.relu(self.a(x))
            return self.b(y + self.norm(y))

    model = Net().eval()
    with torch.no_grad():
        model.norm.weight[:2] = 0
        model.a.weight[0], model.a.bias[0] = -0.01, -1.0  # dead on the example, alive elsewhere
    x = torch.rand(6, 4)
    assert (model.a(x)[:, 0] < 0).all()
    assert compact(model, x).a.out_features == 5


def test_a_unit_dead_only_on_the_example_stays():
    model, x = models.build("mlp-relu")
    with torch.no_grad():
        model.layers[0].bias[3] = -1e6
    assert compact(model, x).layers[0].out_features == 16


def test_unread_units_empty_their_predecessors():
    """Zero columns at the end take units with them, back to the first layer."""
    model, x = models.build("mlp-tanh")
    with torch.no_grad():
        model.layers[4].weight[:, 2:] = 0  # 2 of 10 units are read
        model.layers[2].weight[:2, 5:] = 0  # and these read 5 of 16
    small = compact(model, x)
    assert [small.layers[i].out_features for i in (0, 2, 4)] == [5, 2, 5]
    assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_dead_group_keeps_one_unit():
    for name in ("mlp-relu", "cnn-relu", "resnet20-pad", "mixed"):
        model, x = models.build(name)
        for group in couple(model, x).groups:
            zero(model, group, list(range(group.size)))
        with warning(name == "resnet20-pad"):
            small = compact(model, x)
        assert all(min(p.shape, default=1) >= 1 for p in small.parameters())
        assert parameters(small) < parameters(model)
        assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


def test_width_one():
    model = models.MLP((4, 1, 1, 3)).eval()
    with torch.no_grad():
        model.layers[2].weight.zero_()
    x = torch.randn(3, 4)
    small = compact(model, x)
    assert [tuple(p.shape) for p in small.parameters()] == [
        tuple(p.shape) for p in model.parameters()
    ]
    assert_close(small(x), model(x))


def test_edge_masks_that_empty_units():
    """90 % of the single weights are zero: rows and columns that died go, the rest agrees."""
    model, x = models.build("mlp-sigmoid")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for i in (0, 2, 4):
            weight = model.layers[i].weight
            weight *= torch.rand(weight.shape, generator=generator) < 0.1
    small = compact(model, x)
    assert parameters(small) < parameters(model)
    assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


def test_attributes_and_flags():
    model, x = models.build("mixed")
    model.train()
    model.norm.eval()
    model.depth.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    group = couple(model, x).groups[0]
    zero(model, group, [0])
    masked = copy.deepcopy(model.state_dict())
    small = compact(model, x)
    assert small.training
    assert not small.norm.training
    assert not small.depth.weight.requires_grad
    assert small.stem.weight.requires_grad
    assert small.depth.groups == small.depth.in_channels == small.depth.out_channels == 5
    assert (small.wide.groups, small.wide.in_channels, small.wide.out_channels) == (5, 5, 10)
    assert (small.grouped.groups, small.grouped.in_channels) == (4, 16)
    assert small.norm.num_features == 5
    assert {n: type(m) for n, m in small.named_modules()} == {
        n: type(m) for n, m in model.named_modules()
    }
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, masked[name]), name
    assert any(not torch.equal(before[name], masked[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_anything_with_a_model():
    model, x = models.build("mlp-relu")
    zero(model, couple(model, x).groups[0], [1, 2])
    assert compact(SimpleNamespace(model=model), (x, None)).layers[0].out_features == 14


@pytest.mark.parametrize("name", ["called-twice", "tied", "transposed", "lstm", "attention"])
def test_what_coupling_refuses_stays_and_agrees(name):
    """Zero rows in refused layers change no shape; the others shrink."""
    model, x = models.build(name)
    coupling = couple(model, x)
    with torch.no_grad():
        for layer in coupling.refused:
            model.get_submodule(layer).weight[0] = 0
    small = compact(model, x)
    for layer in coupling.refused:
        assert len(small.get_submodule(layer).weight) == len(model.get_submodule(layer).weight)
    assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)


class Written(nn.Module):
    """A forward pass that writes a width down in one of several ways."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 6), nn.Linear(6, 3), how

    def forward(self, x):
        return self.b(self.how(F.relu(self.a(x))))


@pytest.mark.parametrize(
    ("how", "pattern"),
    [
        (
            lambda y: y.view(-1, 6),
            r"1 of 6 channels of a \(it .*fails after layer `a` \(shape .*x.view\(-1, 400\)",
        ),
        (
            lambda y: torch.cat([y[:, 0:3], y[:, 3:6].flip(1)], 1),
            r"1 of 3 channels of a \(it .* is not equal to the masked one: .* `b` is the first",
        ),
    ],
)
def test_widths_written_in_the_forward_pass(how, pattern):
    model, x = Written(how), torch.randn(5, 4)
    zero(model, couple(model, x).groups[0], [1])
    with pytest.warns(PinnedChannels, match=pattern):
        small = compact(model, x)
    assert small.a.out_features == 6
    assert torch.equal(small(x), model(x))


def test_untraceable_models_are_refused():
    def broken(y):
        raise ArithmeticError("no such thing")

    pattern = r"cannot be made smaller: the model does not run on the example \(no such thing\)"
    with pytest.raises(CompactionError, match=pattern):
        compact(Written(broken), torch.randn(5, 4))


def test_control_flow_on_values_leaves_their_units_whole():
    model = Written(lambda y: y if y.sum() > 0 else -y)
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1], model.b.weight[:, 1] = 0, 0, 0
    assert compact(model, torch.randn(5, 4)).a.out_features == 6


def test_verification_finds_the_first_layer_that_differs():
    """Negative control: one weight of a copy is off by 1e-3."""
    model, x = models.build("resnet20-conv")
    other = copy.deepcopy(model)
    verify_equal(model, other, x, kept={}, rtol=1e-4)
    with torch.no_grad():
        other.stages[4].conv1.weight[0, 0] += 1e-3
    with pytest.raises(CompactionError, match=r"layer `stages\.4\.conv1` is the first"):
        verify_equal(model, other, x, kept={}, rtol=1e-4)


def test_norms_without_tensors():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.InstanceNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3), nn.Flatten()
    )
    x = torch.randn(2, 2, 7, 7)
    zero(model, couple(model, x).groups[0], [0, 4])
    small = compact(model, x)
    assert small[1].num_features == small[0].out_channels == 4
    assert_close(small(x), model(x))


def test_half_precision():
    model, x = models.build("mlp-gelu")
    model, x = model.to(torch.bfloat16), x.to(torch.bfloat16)
    for group in couple(model, x).groups:
        zero(model, group, half(group))
    small = compact(model, x)
    assert small.layers[0].weight.dtype == torch.bfloat16
    assert small.layers[0].out_features == 8


def test_the_coarsest_precision_inside_a_network_decides():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 256).bfloat16(), nn.Linear(256, 48)
            self.c = nn.Linear(48, 5).double()

        def forward(self, x):
            h = F.relu(self.a(x.bfloat16())).float()
            return self.c(F.relu(self.b(h)).double())

    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(64, 64)
    for group in couple(model, x).groups:
        zero(model, group, half(group))
    small = compact(model, x)
    assert (small.a.out_features, small.b.out_features) == (128, 24)
    assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
    verify_equal(model, small, x, kept={}, rtol=1e-4)
    with torch.no_grad():
        small.c.weight *= 1.05  # more than the rounding of the bfloat16 layer
    with pytest.raises(CompactionError, match="is not equal to the masked one"):
        verify_equal(model, small, x, kept={}, rtol=1e-4)
