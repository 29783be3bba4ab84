"""Each class of each network is removable: nothing else reads or makes its channels."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from coupling_checks import few_of, moved
from prunus.coupling import Coupling, Group, couple


def groups_by_name(coupling: Coupling) -> dict[str, Group]:
    return {group.name: group for group in coupling.groups}


@pytest.mark.parametrize("name", models.ZOO)
def test_zero_in_and_redraw_out_leave_the_output_alone(name):
    """1e-10: float64 networks with outputs of order 1, sums of at most a few hundred terms."""
    model, x = models.build(name)
    x = x[:2]
    coupling = couple(model, x)
    for group in coupling.groups:
        worst = 0.0
        for members in few_of(group):
            assert any(m.role == "in" for m in members)
            assert any(m.role == "out" for m in members)
            worst = max(worst, moved(model, members, x))
        if group.exact:
            assert worst <= 1e-10, f"{name}: {group.name}"
        else:
            assert worst > 1e-6, f"{name}: {group.name} is exact after all"


@pytest.mark.parametrize("name", ["mlp-relu", "cnn-relu", "resnet20-pad", "mixed"])
def test_the_check_detects_a_wrong_class(name):
    """Negative control: drop one `in` column of a class, or take another unit's row."""
    model, x = models.build(name)
    for group in couple(model, x).groups:
        members = list(group.classes[0])
        column = next(m for m in members if m.role == "in")
        assert moved(model, [m for m in members if m is not column], x) > 1e-8
        foreign = [m for m in group.classes[-1] if m.role == "out"]
        if group.size == 1:
            continue
        rest = [m for m in members if m.role == "in"]
        assert moved(model, rest + foreign, x) > 1e-8


def test_mlp_has_one_group_per_hidden_layer():
    model, x = models.build("mlp-norm")
    coupling = couple(model, x)
    first, second = coupling.groups
    assert (first.name, first.size, first.consumers) == ("layers.0", 16, ("layers.3",))
    assert (second.name, second.size, second.norms) == ("layers.3", 10, ("layers.4",))
    assert coupling.refused == {"layers.6": "its outputs are the network's outputs"}
    assert {(m.parameter, m.axis, m.index, m.role) for m in first.classes[5]} == {
        ("layers.0.weight", 0, 5, "out"),
        ("layers.0.bias", 0, 5, "out"),
        ("layers.1.weight", 0, 5, "out"),
        ("layers.1.bias", 0, 5, "out"),
        ("layers.1.running_mean", 0, 5, "out"),
        ("layers.1.running_var", 0, 5, "out"),
        ("layers.3.weight", 1, 5, "in"),
    }


def test_flatten_gives_each_channel_its_block_of_columns():
    model, x = models.build("cnn-relu")
    group = groups_by_name(couple(model, x))["conv2"]
    slot = next(s for s in group.slots if s.role == "in")
    assert slot.parameter == "fc1.weight"
    assert slot.index.tolist() == list(range(32))
    assert slot.unit.tolist() == [i // 4 for i in range(32)]


def test_resnet_with_padded_shortcut():
    model, x = models.build("resnet20-pad")
    coupling = couple(model, x)
    groups = groups_by_name(coupling)
    assert coupling.refused == {"fc": "its outputs are the network's outputs"}
    streams = {name: g.size for name, g in groups.items() if "conv1" not in name}
    # 16 channels live from the stem to the end, 16 from stage 2 on, 32 in stage 3 alone.
    assert streams == {"conv": 16, "stages.3.conv2": 16, "stages.6.conv2": 32}
    assert groups["stages.3.conv2"].written
    assert groups["stages.6.conv2"].written
    assert not groups["conv"].written
    inner = [g for name, g in groups.items() if name.endswith("conv1")]
    assert [g.size for g in inner] == [16] * 3 + [32] * 3 + [64] * 3
    assert "fc" in groups["conv"].consumers


def test_resnet_with_convolutional_shortcut():
    model, x = models.build("resnet20-conv")
    groups = groups_by_name(couple(model, x))
    streams = {name: g.size for name, g in groups.items() if not name.endswith("conv1")}
    assert streams == {"conv": 16, "stages.3.conv2": 32, "stages.6.conv2": 64}
    assert "stages.3.down.0" in groups["stages.3.conv2"].producers
    assert "stages.3.down.0" in groups["conv"].consumers
    assert "stages.3.down.1" in groups["stages.3.conv2"].norms
    assert not any(g.written for g in groups.values())


def test_depthwise_ties_and_grouped_keeps_its_conv_groups():
    model, x = models.build("mixed")
    groups = groups_by_name(couple(model, x))
    # 24 concatenated channels in 4 conv groups of 6: places j, j + 6, j + 12, j + 18 go together;
    # channels 0-15 are pairs of the multiplier, so places 2j and 2j + 1 go together as well. The
    # 8 channels of the stem share among these 3 as 3, 3 and 2: the last is a class of another kind.
    sizes = {name: group.size for name, group in groups.items()}
    assert sizes == {"stem": 2, "stem#2": 1, "grouped": 3, "last": 6}
    assert groups["stem"].producers == ("stem", "depth", "wide", "side")
    assert groups["stem"].consumers == ("grouped",)
    rows = [m.index for m in groups["grouped"].classes[1] if m.parameter == "grouped.weight"]
    assert rows == [1, 4, 7, 10]


def test_what_cannot_be_followed_is_refused_by_name():
    def refused(name: str) -> dict[str, str]:
        return couple(*models.build(name)).refused

    tied = refused("tied")
    assert tied["left"] == tied["right"] == "`left.weight` is shared with `right.weight`"


def test_attention_of_torch_has_heads_and_feed_forward_units():
    groups = groups_by_name(couple(*models.build("attention")))
    raw = tuple(f"encoder.layers.{i}.self_attn.in_proj_weight" for i in (0, 1))
    assert set(groups) == {"embed", "encoder.layers.0.linear1", "encoder.layers.1.linear1", *raw}
    assert groups["embed"].raw == raw
    assert {name: group.size for name, group in groups.items() if group.exact} == {
        "encoder.layers.0.linear1": 12, "encoder.layers.1.linear1": 12, raw[0]: 2, raw[1]: 2
    }  # fmt: skip


def test_gates_scales_and_norms():
    groups = groups_by_name(couple(*models.build("gated")))
    first = groups["conv1"]
    assert first.producers == ("conv1", "excite")
    assert first.consumers == ("squeeze", "conv2")
    raw = {(s.parameter, s.axis) for s in first.slots if s.parameter in ("scale", "shift", "where")}
    assert raw == {("scale", 0), ("shift", 1)}
    assert ("slope.weight", 0) in {(s.parameter, s.axis) for s in groups["conv2"].slots}
    assert not groups["fc1"].exact
    assert groups["fc1"].size == 5  # value i and gate i + 5
    assert groups["fc1"].norms == ("norm",)


@pytest.mark.parametrize(
    "activation",
    ["ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "SiLU", "Mish", "Hardtanh", "Hardsigmoid",
     "Hardswish", "Softplus", "Softsign", "LogSigmoid", "Tanhshrink", "PReLU", "Dropout"],
)  # fmt: skip
def test_activations_keep_units_apart(activation):
    model = nn.Sequential(nn.Linear(4, 5), getattr(nn, activation)(), nn.Linear(5, 2))
    (group,) = couple(model, torch.randn(3, 4)).groups
    assert (group.size, group.producers, group.consumers) == (5, ("0",), ("2",))


class Lambda(nn.Module):
    """Two linear layers around a function."""

    def __init__(self, function, wide: int = 6):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 6), nn.Linear(wide, 3), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize(
    ("function", "wide", "reason"),
    [
        (lambda y: y.cumsum(1), 6, "aten.cumsum mixes it with other values"),
        (lambda y: y.sort(1).values, 6, "aten.sort mixes it with other values"),
        (lambda y: y[:, y[0].topk(3).indices], 3, "aten.topk mixes it with other values"),
        (
            lambda y: y @ torch.ones(6, 2),
            2,
            "aten.mm sums over it with values that no removable channel makes",
        ),
        (
            lambda y: y - y.mean(1, keepdim=True),
            6,
            "aten.sub takes a mean or a norm over it elsewhere",
        ),
        (lambda y: y.view(-1, 3, 2).amax(2), 3, "aten.amax mixes it with other values"),
    ],
)
def test_operations_that_mix_units_are_refused(function, wide, reason):
    coupling = couple(Lambda(function, wide), torch.randn(3, 4))
    assert coupling.groups == ()
    assert coupling.refused["a"] == reason


def test_units_that_nobody_reads_are_no_classes():
    (group,) = couple(Lambda(lambda y: y[:, ::2], 3), torch.randn(3, 4)).groups
    rows = next(s for s in group.slots if s.parameter == "a.weight")
    assert rows.index.tolist() == [0, 2, 4]


def test_in_place_operations():
    model = Lambda(lambda y: torch.relu_(y.mul_(2).add_(1)))
    assert couple(model, torch.randn(3, 4)).groups[0].size == 6


class Two(nn.Module):
    """Two layers of equal width; what a function makes of them is read by a third."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)
        self.function = function

    def forward(self, x):
        return self.c(self.function(self.a(x), self.b(x)))


def first_row_in_place(a, b):
    a = torch.relu(a)
    a[:1] = b[:1]
    return a


@pytest.mark.parametrize(
    "function",
    [
        first_row_in_place,
        lambda a, b: torch.slice_scatter(a, b[:1], 0, 0, 1),
        lambda a, b: torch.select_scatter(a, b[0], 0, 1),
    ],
    ids=["in place", "slice_scatter", "select_scatter"],
)
def test_rows_written_into_those_of_another_layer_unite_both(function):
    model, x = Two(function).eval(), torch.randn(3, 4)
    (group,) = couple(model, x).groups
    assert (group.producers, group.consumers, group.size) == (("a", "b"), ("c",), 3)


def test_a_weight_that_reads_channels_and_data_keeps_its_columns():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.c(torch.relu(self.b(self.a(x)) + self.b(x)))

    found = couple(Shared(), torch.randn(5, 6))
    assert found.refused["a"] == (
        "`b.weight` reads it together with values that no removable channel makes"
    )
    assert [g.producers for g in found.groups] == [("b",)]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_parameter_by_channel_and_position_is_a_member_at_any_width(channels):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, channels, 3), nn.Conv2d(channels, 3, 2)
            self.scale = nn.Parameter(torch.randn(1, channels, 2, 2))

        def forward(self, x):
            return self.b(torch.relu(self.a(x)) * self.scale)

    (group,) = couple(Scaled().eval(), torch.randn(5, 2, 4, 4)).groups
    assert "scale" in {slot.parameter for slot in group.slots}


class Readers(nn.Module):
    """Eight channels that one layer reads all of, and another only those of a slice."""

    def __init__(self, read):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.c, self.read = nn.Linear(len(range(*read.indices(8))), 2), read

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.b(x), self.c(x[:, self.read])


@pytest.mark.parametrize(("first", "last"), [(0, 3), (2, 5), (3, 8)])
def test_channels_that_one_of_two_layers_reads_are_a_group_of_their_own(first, last):
    found = couple(Readers(slice(first, last)), torch.randn(2, 4)).groups
    own = {
        group.consumers: sorted(
            i for s in group.slots if s.parameter == "a.weight" for i in s.index.tolist()
        )
        for group in found
    }
    inside = list(range(first, last))
    assert own == {("b", "c"): inside, ("b",): [i for i in range(8) if i not in inside]}


def test_softmax_over_channels_is_refused():
    model = nn.Sequential(nn.Linear(4, 6), nn.Softmax(dim=1), nn.Linear(6, 3))
    reason = couple(model, torch.randn(3, 4)).refused["0"]
    assert reason == "aten._softmax mixes it with other values"


def test_adding_the_input_is_refused():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(self.a(x) + x)

    reason = couple(Skip(), torch.randn(3, 4)).refused["a"]
    assert reason == "aten.add combines it with values that no removable channel makes"


class Branch(nn.Module):
    """A branch that looks at the values."""

    def __init__(self, test):
        super().__init__()
        self.a, self.b, self.test = nn.Linear(4, 4), nn.Linear(4, 3), test

    def forward(self, x):
        y = self.a(x)
        return self.b(y) if self.test(x, y) else self.b(-y)


def test_a_branch_on_the_inputs_is_followed_where_it_goes():
    (group,) = couple(Branch(lambda x, y: x.sum() > 0), torch.randn(3, 4)).groups
    assert (group.name, group.size) == ("a", 4)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (lambda x, y: y.prod() > 0, "aten.prod mixes it with other values"),
        (lambda x, y: y[0, 2] > 0, "operation aten._local_scalar_dense has no rule"),
        (lambda x, y: (y > 0)[0, 2], "operation aten._local_scalar_dense has no rule"),
    ],
)
def test_a_branch_on_units_refuses_them(test, reason):
    coupling = couple(Branch(test), torch.randn(3, 4))
    rows = [slot.index.tolist() for g in coupling.groups for slot in g.slots if slot.axis == 0]
    assert coupling.refused.get("a", reason) == reason
    assert all(2 not in index for index in rows)


@pytest.mark.parametrize("model", [nn.Linear(4, 3), nn.Identity(), nn.Sequential(nn.Linear(4, 3))])
def test_a_model_without_channels_inside_has_no_groups(model):
    coupling = couple(model, torch.randn(3, 4))
    assert coupling.groups == ()
    reasons = {"its outputs are the network's outputs"}
    assert {*coupling.refused.values()} == reasons or isinstance(model, nn.Identity)


def test_a_model_that_does_not_run_refuses_everything():
    coupling = couple(nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 3)), torch.randn(3, 4))
    assert coupling.groups == ()
    assert set(coupling.refused) == {"0", "1"}
    assert coupling.refused["0"].startswith("the model does not run on the example (mat1 and mat2")


@pytest.mark.parametrize("wrap", [lambda x: (x, 0), lambda x: {"x": x}, lambda x: x[:1]])
def test_forms_of_the_example(wrap):
    model, x = models.build("cnn-relu")
    expected = [(g.name, g.size) for g in couple(model, x).groups]
    assert [(g.name, g.size) for g in couple(model, wrap(x)).groups] == expected


def test_example_of_another_kind():
    with pytest.raises(TypeError, match=r"`example` must be one batch: a tensor, .* got str"):
        couple(nn.Linear(2, 2), "digits")


def test_the_model_is_left_as_it_was():
    model, x = models.build("cnn-relu")
    model.train()
    model.norm1.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    couple(model, x)
    assert [module.training for module in model.modules()] == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", models.ZOO)
def test_groups_of_the_zoo_are_those_on_record(name):
    """Names, sizes and members as an independent walk over torch.export found them.

    Modules called twice, transposed convolutions, recurrent layers and raw parameters it refused.
    Seeds hang on the names.
    """
    record = json.loads((Path(__file__).parent / "zoo_groups.json").read_text())
    found = [[g.name, g.size, digest(g)] for g in couple(*models.build(name)).groups]
    since = {"called-twice": ["first"], "transposed": ["conv1", "up"]}.get(name, [])
    since = {"lstm": ["embed", "lstm.weight_ih_l0"]}.get(name, since)
    if name == "attention":
        raw = "encoder.layers.{}.self_attn.in_proj_weight"
        since = ["embed", raw.format(0), raw.format(1)]
    assert set(since) <= {name for name, _, _ in found}
    found = [row for row in found if row[0] not in since]
    assert found == record[name]


def digest(group: Group) -> str:
    """A hash of all that a group says."""
    slots = sorted(
        [s.parameter, s.axis, s.role, sorted(zip(s.index.tolist(), s.unit.tolist(), strict=True))]
        for s in group.slots
    )
    facts = [group.producers, group.consumers, group.norms, group.exact, group.written, slots]
    text = json.dumps(facts, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
