"""`compact` after `prune` hands out what `prune` has compared, and sees changes made since."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import prunus
from prunus.surgery import proof, verify


class Net(nn.Module):
    """Two hidden layers, with a switch that another forward pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.sign = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * self.out(self.two(self.one(x).relu()).relu())


@pytest.fixture
def runs(monkeypatch):
    """How often networks with zeros ran for a comparison."""
    found = []
    run = verify._run_noting
    monkeypatch.setattr(verify, "_run_noting", lambda *a: found.append(a) or run(*a))
    return found


@pytest.fixture
def pruned():
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    return prunus.prune(Net(), "l1-filter", 0.5, data=x, measure=False), x


def test_the_network_with_zeros_runs_once_for_an_example(pruned, runs):
    result, x = pruned
    small = result.compact(x.clone())
    assert not runs
    assert_close(small(x), result.model(x))
    assert small.one.out_features < 8
    result.compact()
    assert not runs
    result.compact(torch.randn(4, 6))
    assert len(runs) == 1


@pytest.mark.parametrize("what", ["trained", "hidden", "switch", "double"])
def test_a_network_that_has_changed_is_compared_again(what, pruned, runs):
    result, x = pruned
    if what == "trained":
        with torch.no_grad():
            result.model.out.bias += 1
    elif what == "hidden":  # as no version of a tensor tells
        result.model.out.weight.data.mul_(2)
    elif what == "switch":
        result.model.sign = -1.0
    else:
        result.model.double()
        x = x.double()
    small = result.compact(x)
    assert len(runs) == 1
    assert_close(small(x), result.model(x))


class Options:
    """As a configuration of Hugging Face is one object that many modules hold."""

    def __init__(self) -> None:
        self.scale, self.parts = 1.0, {"more": [0.0]}


class Held(Net):
    """What the forward pass reads lies in a buffer that is not stored, an object and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(3), persistent=False)
        self.options, self.spare = Options(), [nn.Linear(3, 3)]

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) * self.options.scale + self.options.parts["more"][0]
        return self.spare[0](y + self.shift)


@pytest.mark.parametrize("what", ["buffer", "object", "inside", "list", "hook", "nothing"])
def test_a_change_of_anything_that_a_forward_pass_reads_is_seen(what, runs):
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    result = prunus.prune(Held(), "l1-filter", 0.5, data=x, measure=False)
    runs.clear()
    model = result.model
    if what == "buffer":
        model.shift += 1
    elif what == "object":
        model.options.scale = 2.0
    elif what == "inside":
        model.options.parts["more"][0] = 1.0
    elif what == "list":
        model.spare[0].weight.data.mul_(2)
    elif what == "hook":
        model.one.register_forward_hook(lambda module, inputs, output: output * 2)
    small = result.compact(x)
    assert len(runs) == (what != "nothing")
    assert_close(small(x), model(x))


def test_flags_are_those_of_the_network_as_it_is_now(pruned, runs):
    result, x = pruned
    result.model.eval()
    result.model.out.bias.requires_grad_(False)
    small = result.compact(x)
    assert len(runs) == 1
    assert not small.training
    assert not small.out.bias.requires_grad


def test_another_tolerance_is_another_comparison(pruned, runs):
    result, x = pruned
    result.compact(x, rtol=1e-3)
    assert not runs
    result.compact(x, rtol=1e-5)
    assert len(runs) == 1


def test_each_call_hands_out_a_network_of_its_own(pruned, runs):
    result, x = pruned
    one = result.compact()
    with torch.no_grad():
        one.out.bias += 1
    assert_close(result.compact()(x), result.model(x))
    assert not runs


def test_a_copy_keeps_what_is_known_and_a_large_network_is_not_kept(pruned, runs, monkeypatch):
    result, x = pruned
    copy.deepcopy(result).compact(x)
    assert not runs
    assert pickle.loads(pickle.dumps(result.proved)) is None
    monkeypatch.setattr(proof, "KEPT", 3)
    again = prunus.prune(Net(), "l1-filter", 0.5, data=x, measure=False)
    assert again.proved is None
    before = len(runs)
    again.compact(x)
    assert len(runs) == before + 1
