"""Code that hides, mixes or bends channels: no class that is called exact may be wrong."""

import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import prunus
from coupling_checks import moved
from prunus.coupling import couple


class Net(nn.Module):
    """Layers a (6 → 8), b (6 → 8) and c (8 → 3), and a function of them."""

    def __init__(self, function, wide=8):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(wide, 3)
        self.slope, self.norm = nn.PReLU(8), nn.BatchNorm1d(8)
        self.scale = nn.Parameter(torch.randn(8))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


class Doubled(torch.autograd.Function):
    """A function with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x


def written_into(y, x):
    y = y.clone()
    y[:, :2] += x[:, :2]
    return y


def overwritten(y, z):
    y[:, 2:6] = z[:, :4]
    return y


def with_out(a, b):
    result = torch.empty_like(a)
    torch.add(a, b, out=result)
    return result


def turned_round(y):
    return torch.view_as_real(torch.view_as_complex(y.view(-1, 4, 2)) * (1 + 1j)).flatten(1)


def in_half(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.a(x).double()


def inferring(net, x):
    with torch.inference_mode():
        return net.c(F.gelu(net.a(x)))


def differentiating(net, x):
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(net.a(x).tanh().sum(), x)
    return net.c(F.pad(slope, (0, 2)))


# How many classes of `a`'s rows can go; None where only their being right matters.
CASES = {
    "min of two": (lambda n, x: n.c(torch.min(n.a(x), n.b(x))), 8),
    "max of two": (lambda n, x: n.c(torch.max(n.a(x), n.b(x))), 8),
    "max over channels": (lambda n, x: n.c(n.a(x) * n.a(x).max(1, keepdim=True).values), 0),
    "a gate of truth values": (lambda n, x: n.c(n.b(x) * (n.a(x) > 0)), 8),
    "where": (lambda n, x: n.c(torch.where(n.a(x) > 0, n.a(x), n.b(x))), 8),
    "numpy": (lambda n, x: n.c(n.a(x)) + torch.tensor(n.a(x).detach().numpy()[:, :3]), 0),
    "numpy's functions": (lambda n, x: n.c(torch.tensor(np.tanh(n.a(x).detach()))), 0),
    "lists": (lambda n, x: n.c(n.a(x)) * torch.tensor(n.a(x).tolist()).double()[:, :1], 0),
    "one number": (lambda n, x: n.c(n.a(x)) * n.a(x)[0, 0].item(), 7),
    "written into": (lambda n, x: n.c(written_into(n.a(x), x)), 6),
    "overwritten": (lambda n, x: n.c(overwritten(n.a(x), n.b(x))), 4),
    "out": (lambda n, x: n.c(with_out(n.a(x), n.b(x))), 8),
    "rolled": (lambda n, x: n.c(n.a(x).roll(4, -1) + n.a(x)), 4),
    "a shared norm": (lambda n, x: n.c(n.norm(n.a(x)) + n.norm(n.b(x))), 8),
    "slopes": (lambda n, x: n.c(n.slope(n.a(x)) * n.scale), 8),
    "by function": (lambda n, x: n.c(F.linear(x, n.a.weight, n.a.bias)), 8),
    "turned": (lambda n, x: n.c(F.pad(F.linear(n.a(x), n.a.weight.t()), (0, 2))), 0),
    "a penalty": (lambda n, x: (n.c(n.a(x)), n.a.weight.pow(2).sum()), 0),
    "einsum": (lambda n, x: n.c(torch.einsum("bd,od->bo", x, n.a.weight)), 8),
    "twice": (lambda n, x: n.c(n.a(x) + n.a(-x)), 8),
    "noise": (lambda n, x: n.c(n.a(x) + torch.randn_like(n.a(x))), None),
    "complex": (lambda n, x: n.c(turned_round(n.a(x))), 0),
    "a hidden output": (lambda n, x: (n.c(n.a(x)), types.SimpleNamespace(z=n.a(x)[:, :2])), 6),
    "checkpoint": (lambda n, x: n.c(checkpoint(n.a, x, use_reentrant=False)), 8),
    "a function of one's own": (lambda n, x: n.c(Doubled.apply(n.a(x))), 8),
    "vmap": (lambda n, x: n.c(torch.vmap(torch.relu)(n.a(x))), 8),
    "autocast": (lambda n, x: n.c(in_half(n, x)), 8),
    "inference mode": (inferring, 8),
    "a gradient inside": (differentiating, 0),
    "batch statistics": (lambda n, x: n.c(F.batch_norm(n.a(x), None, None, training=True)), 8),
}


@pytest.mark.parametrize("name", CASES)
def test_no_exact_class_is_wrong(name):
    function, count = CASES[name]
    torch.manual_seed(0)
    model, x = Net(function).double().eval(), torch.randn(4, 6, dtype=torch.float64)
    groups = couple(model, x).groups
    if name != "noise":
        for group in groups:
            assert max(moved(model, members, x) for members in group.classes) <= 1e-9
    found = sum(group.size for group in groups if "a" in group.producers)
    assert found == count or (name == "noise" and all(group.drawn for group in groups))


@pytest.mark.parametrize(
    "take",
    [
        lambda y: y[:, [5, 0, 3]],
        lambda y: y.index_select(1, torch.tensor([5, 0, 3])),
        lambda y: y.gather(1, torch.tensor([[5, 0, 3]]).expand(len(y), -1)),
    ],
)
def test_channels_taken_by_number_are_written_down(take):
    model = nn.Sequential(nn.Linear(4, 8), Taken(take), nn.Linear(3, 2)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    groups = couple(model, x).groups
    assert groups
    assert all(group.written for group in groups)
    rows = {m.index for g in groups for c in g.classes for m in c if m.parameter == "0.weight"}
    assert rows == {0, 3, 5}
    for group in groups:
        assert max(moved(model, members, x) for members in group.classes) <= 1e-12


def test_positions_taken_by_number_leave_channels_as_they_are():
    where = torch.tensor([1, 0, 2])
    for take in (lambda y: y[:, where], lambda y: y[torch.arange(2), where[:2]][:, None]):
        model = nn.Sequential(nn.Linear(4, 8), Taken(take), nn.Linear(8, 2))
        (group,) = couple(model, torch.randn(2, 5, 4)).groups
        assert (group.size, group.written, group.exact) == (8, False, True)


class Taken(nn.Module):
    """A function as a module."""

    def __init__(self, take):
        super().__init__()
        self.take = take

    def forward(self, y):
        return self.take(y)


def test_weights_that_are_made_anew_are_named_with_the_cure():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 2))
    reason = couple(model, torch.randn(2, 4)).refused["0"]
    assert reason.startswith("its weight is computed in the forward pass; make it a parameter by ")
    assert reason.endswith("remove_parametrizations")


def test_one_module_under_two_names_is_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.body = nn.Sequential(self.a, nn.ReLU(), nn.Linear(6, 2))

        def forward(self, x):
            return self.body(x)

    (group,) = couple(Twice(), torch.randn(2, 4)).groups
    assert (group.name, group.producers, group.consumers) == ("a", ("a",), ("body.2",))


def test_what_runs_beside_the_output_is_a_consumer():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.aside = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 5)

        def forward(self, x):
            y = self.a(x)
            self.kept = self.aside(y)
            return self.b(y)

    (group,) = couple(Aside(), torch.randn(2, 4)).groups
    assert set(group.consumers) == {"b", "aside"}


def test_a_fault_in_a_rule_costs_its_classes_alone(monkeypatch):
    from prunus.coupling import rules

    def broken(trace, call):
        raise ZeroDivisionError("no such place")

    monkeypatch.setitem(rules.RULES, "aten.relu", broken)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    coupling = couple(model, torch.randn(2, 4))
    assert [group.name for group in coupling.groups] == ["0"]
    assert coupling.refused["2"] == "operation aten.relu cannot be followed (no such place)"


def test_the_random_state_and_the_fast_path_are_as_before():
    model, x = Net(CASES["noise"][0]), torch.randn(4, 6)
    before, path = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    couple(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.backends.mha.get_fastpath_enabled() == path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_channels_last_and_other_types(dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = model.to(dtype=dtype, memory_format=torch.channels_last).eval()
    x = torch.randn(2, 3, 6, 6).to(dtype=dtype, memory_format=torch.channels_last)
    (group,) = couple(model, x).groups
    assert group.size == 4
    places = {(s.parameter, s.axis) for s in group.slots}
    assert {("0.weight", 0), ("0.bias", 0), ("1.running_var", 0), ("3.weight", 1)} <= places


def test_pooled_maps_whose_channels_lie_last_keep_their_channels():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1))
    model = model.to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    (group,) = couple(model, x).groups
    assert (group.size, group.consumers) == (4, ("2",))
    assert all(moved(model, members, x) <= 1e-6 for members in group.classes)


class Forked(nn.Module):
    """Two samples take one way, the whole example the other."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Linear(4, 12), nn.Linear(12, 10)
        self.left, self.right = nn.Linear(10, 8), nn.Linear(10, 8)
        self.mid, self.head = nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = torch.relu(self.wide(torch.relu(self.stem(x))))
        h = self.left(h) if x.mean() > 0 else self.right(h)
        return self.head(torch.relu(self.mid(torch.relu(h))))


def test_what_is_promised_holds_where_a_network_chooses_its_way():
    torch.manual_seed(0)
    x = torch.randn(8, 4) - 1
    x[:2] = x[:2].abs()
    assert x.mean() < 0 < x[:2].mean()
    net = Forked().eval()
    pruned = prunus.prune(net, "importance-node", 0.7, data=x)
    assert set(pruned.plan.kept) == {"stem", "mid"}  # what both ways share
    assert "cannot be made narrower" in pruned.not_pruned["wide"]
    small = pruned.compact()
    assert sum(p.numel() for p in small.parameters()) == pruned.cost_after.parameters
    for data in (x, -x):
        torch.testing.assert_close(small(data), pruned.model(data))


def test_channels_that_all_go_together_are_no_nodes():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.c(torch.einsum("bi,bi->b", a, b)[:, None] * a)

    with pytest.raises(ValueError, match=r"no nodes to prune .*all its channels go together"):
        prunus.prune(Shared().eval(), "importance-node", 0.5, data=torch.randn(6, 4))
