"""Channels taken apart into equal parts keep equal counts, whatever the plan says."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import prunus
from coupling_checks import few_of, moved
from prunus.allocation import LAMP, Global
from prunus.coupling import couple
from prunus.granularity import Node


class Halves(nn.Module):
    """A chain on one half of the channels, everything concatenated."""

    def __init__(self, take, wide=8):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, wide, 3, padding=1), nn.Conv2d(wide // 2, wide // 2, 1)
        self.c, self.take = nn.Conv2d(3 * wide // 2, 5, 1), take

    def forward(self, x):
        left, right = self.take(torch.relu(self.a(x)))
        return self.c(torch.cat([left, right, right + torch.tanh(self.b(right))], 1))


def shuffled(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Shuffle(nn.Module):
    """A channel shuffle between a pointwise and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
        self.c = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.c(torch.relu(self.b(shuffled(torch.relu(self.a(x))))))


TAKEN = {
    "chunk": lambda y: y.chunk(2, 1),
    "split": lambda y: y.split(y.shape[1] // 2, 1),
    "slices": lambda y: (y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]),
    "unflatten": lambda y: y.unflatten(1, (2, -1)).unbind(1),
    "view": lambda y: y.view(len(y), 2, -1, *y.shape[2:]).unbind(1),
}


@pytest.mark.parametrize("how", TAKEN)
def test_halves_lose_equally_many(how):
    model = Halves(TAKEN[how]).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    (group,) = couple(model, x).groups
    rows = next(s for s in group.slots if (s.parameter, s.axis) == ("a.weight", 0))
    assert group.size == 4
    assert rows.index[rows.unit == 1].tolist() == [1, 5]
    assert max(moved(model, members, x) for members in few_of(group)) <= 1e-12


@pytest.mark.parametrize("rule", [Global(), LAMP()])
@pytest.mark.parametrize("density", [0.3, 0.5, 0.7])
def test_compact_keeps_what_prune_promised(rule, density):
    torch.manual_seed(3)
    for model in (Halves(TAKEN["chunk"], 16), Shuffle()):
        x = torch.randn(4, 3, 5, 5)
        recipe = prunus.Recipe(granularity=Node(), allocation=rule)
        pruned = prunus.prune(model.eval(), recipe, density, data=x)
        small = pruned.compact()
        assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters
        assert_close(small(x), pruned.model(x))


def test_heads_go_whole():
    """Rows of a view that are one class each need no partner in the other rows."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

        def forward(self, x):
            y = self.a(x).view(len(x), 3, 4)
            return self.b((y * y.softmax(2)).flatten(1))

    assert couple(Heads(), torch.randn(2, 4)).groups == ()

    class Gate(Heads):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 3)

        def forward(self, x):
            y = self.a(x).view(len(x), 3, 4) * self.gate(x)[:, :, None]
            return self.b(y.flatten(1))

    (group,) = couple(Gate(), torch.randn(2, 4)).groups
    assert (group.size, group.producers) == (3, ("a", "gate"))


def test_a_part_beside_fixed_values_stays_whole():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            y = torch.cat([self.a(x), x[:, :2]], 1)
            left, right = y.chunk(2, 1)
            return self.b(torch.cat([left, right[:, :2]], 1))

    model = Beside()
    coupling = couple(model, torch.randn(2, 4))
    members = [m for g in coupling.groups for c in g.classes for m in c if m.parameter[0] == "a"]
    assert {m.index for m in members if m.axis == 0} <= {0, 1, 4, 5}
