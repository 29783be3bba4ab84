"""Layers that run in training alone, and transposed convolutions in groups."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from coupling_checks import moved
from prunus.coupling import couple


class Auxiliary(nn.Module):
    """A classifier with a second head that runs in training, as GoogLeNet's."""

    def __init__(self, joined=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head, self.joined = nn.Linear(6, 3), joined
        self.norm, self.aux = nn.BatchNorm2d(8), nn.Conv2d(8, 6 if joined else 4, 1)
        self.aux_head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        y = F.relu(self.b(x))
        if not self.training:
            return self.head(y.mean((2, 3)))
        if self.joined:
            return self.head((y + self.aux(x)).mean((2, 3)))
        return self.head(y.mean((2, 3))), self.aux_head(F.relu(self.aux(self.norm(x))).mean((2, 3)))


def made(**options):
    torch.manual_seed(0)
    return Auxiliary(**options).double().eval(), torch.randn(6, 3, 8, 8).double()


@torch.no_grad()
@pytest.mark.parametrize("recipe", ["importance-node", "l1-filter", "taylor"])
def test_what_reads_in_training_alone_is_cut_too(recipe):
    model, x = made()
    labels = torch.arange(6) % 3
    data = (x, labels) if recipe == "taylor" else x
    pruned = prunus.prune(model, recipe, 0.5, data=data)
    small = pruned.compact(x)
    torch.testing.assert_close(small(x), pruned.model(x))
    assert small.aux.in_channels == small.norm.num_features == small.a.out_channels < 8
    assert small.aux.out_channels == 4
    assert "runs in training alone" in pruned.not_pruned["aux"]
    both = [copied.train() for copied in (small, pruned.model)]
    for one, other in zip(*(network(x) for network in both), strict=True):
        torch.testing.assert_close(one, other)
    assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters


def test_what_training_joins_stays():
    model, x = made(joined=True)
    found = couple(model, x)
    assert [group.name for group in found.groups] == ["a"]
    assert "in training its channels also meet others, by aux" in found.refused["b"]
    small = prunus.prune(model, "importance-node", 0.5, data=x).compact(x)
    assert small.train()(x).shape == (6, 3)


def test_training_that_does_not_run_changes_nothing():
    class Asks(Auxiliary):
        def forward(self, x):
            if self.training:
                raise ValueError("labels, please")
            return super().forward(x)

    torch.manual_seed(0)
    model = Asks().double().eval()
    x = torch.randn(4, 3, 8, 8).double()
    found = couple(model, x)
    assert [group.name for group in found.groups] == ["a", "b"]
    assert "no linear or convolution operation" in found.refused["aux"]


def transposed(groups, out=8):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, out, 2, stride=2, groups=groups),
        nn.ReLU(), nn.Conv2d(out, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    return model.double().eval(), torch.randn(4, 3, 6, 6).double()


@torch.no_grad()
@pytest.mark.parametrize(("groups", "out"), [(1, 8), (2, 8), (2, 4), (4, 16)])
def test_transposed_convolutions_in_groups(groups, out):
    model, x = transposed(groups, out)
    coupling = couple(model, x)
    sizes = {g.name: g.size for g in coupling.groups}
    assert (sizes["0"], sizes["2"]) == (8 // groups, out // groups)
    for group in coupling.groups:
        assert group.exact
        assert max(moved(model, members, x) for members in group.classes) <= 1e-12
    for recipe in ("importance-node", "importance-node+ls", "l1-filter"):
        pruned = prunus.prune(model, recipe, 0.5, data=x)
        small = pruned.compact(x)
        torch.testing.assert_close(small(x), pruned.model(x))
        assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters
        assert small[2].groups == groups
        assert small[2].in_channels < 8


def test_depthwise_ones_are_refused_by_name():
    found = couple(*transposed(8))
    assert [group.name for group in found.groups] == ["4"]
    for name in ("0", "2"):
        assert found.refused[name] == "a depthwise transposed convolution has no rule"


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_constants_are_folded_through_them(groups):
    model, x = transposed(groups)
    model[0].weight[::4] = (
        0  # channels that emit what their bias says, the same place of each group
    )
    model[0].bias[::4] = 0.7
    small = prunus.compact(model, x)
    torch.testing.assert_close(small(x), model(x))
