"""Norms by hand and by torch: exact over one unit, inexact over several, refused elsewhere."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from coupling_checks import moved
from prunus.coupling import couple


class ByHand(nn.Module):
    """A root mean square norm as Hugging Face writes it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        y = x.to(torch.float64)
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x)


class Normed(nn.Module):
    """Two linear layers around something."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 6), nn.Linear(6, 3), between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


class Between(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


OVER_CHANNELS = {
    "by hand": lambda: ByHand(6),
    "rms": lambda: nn.RMSNorm(6),
    "layer": lambda: nn.LayerNorm(6),
    "unit length": lambda: Between(lambda y: F.normalize(y, dim=-1)),
    "own mean": lambda: Between(lambda y: y / y.abs().sum(1, keepdim=True)),
}


@pytest.mark.parametrize("kind", OVER_CHANNELS)
def test_norms_over_several_classes_are_inexact(kind):
    torch.manual_seed(0)
    model = Normed(OVER_CHANNELS[kind]()).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    (group,) = couple(model, x).groups
    assert group.size == 6
    assert not group.exact
    assert max(moved(model, members, x) for members in group.classes) > 1e-6
    weights = {s.parameter for s in group.slots} & {"between.weight"}
    assert weights == ({"between.weight"} if hasattr(model.between, "weight") else set())


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y + y.mean(1, keepdim=True),
        lambda y: y.mean(1, keepdim=True) / y,
        lambda y: y.mean(1, keepdim=True).expand(-1, 6),
        lambda y: torch.cat([y[:, :5], y.mean(1, keepdim=True)], 1),
        lambda y: torch.sigmoid(y.norm(dim=1, keepdim=True)) + y,
    ],
)
def test_a_mean_that_goes_elsewhere_refuses_its_channels(function):
    coupling = couple(Normed(Between(function)), torch.randn(5, 4))
    assert coupling.groups == ()
    assert "a mean or a norm over it" in coupling.refused["a"]


def test_a_norm_that_scales_data_refuses_its_channels():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            y = torch.relu(self.a(x))
            size = y.norm(dim=-1, keepdim=True)
            return self.c(y / size) * (x[:, :1] * size)

    coupling = couple(Scales().eval(), torch.randn(5, 4))
    assert coupling.groups == ()
    assert coupling.refused["a"] == "aten.mul takes a mean or a norm over it elsewhere"


def test_channels_of_one_layer_that_are_held_in_other_ways_are_apart():
    """The same layers use them all: some meet a constant, the others are normed by hand."""

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            y, z = self.a(x).split((2, 4), 1)
            return self.c(torch.cat([y + torch.arange(2.0), z / z.norm(dim=1, keepdim=True)], 1))

    found = couple(Parts().eval(), torch.randn(5, 4)).groups
    assert [(g.size, g.exact, g.written) for g in found] == [(2, True, True), (4, False, False)]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, ByHand])
def test_norms_over_one_head_are_exact(norm):
    """The weight is shared by all heads, so it stays."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 12) for _ in range(3))
            self.o, self.one, self.two = nn.Linear(12, 3), norm(4), norm(4)

        def forward(self, x):
            q, k, v = (p(x).unflatten(2, (-1, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(self.one(q), self.two(k), v)
            return self.o(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model, x = Heads().double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    (group,) = couple(model, x).groups
    assert (group.size, group.exact, group.written) == (3, True, False)
    assert not {s.parameter for s in group.slots} & {"one.weight", "two.weight"}
    assert max(moved(model, members, x) for members in group.classes) <= 1e-12


def test_qwen3_has_heads():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).double().eval()
    ids = torch.randint(1, 60, (2, 9))
    groups = [group for group in couple(model, {"input_ids": ids}).groups if group.exact]
    assert [group.size for group in groups] == [2, 48]
    assert moved(model, groups[0].classes[1], input_ids=ids) <= 1e-10
