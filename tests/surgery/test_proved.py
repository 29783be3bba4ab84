"""`compact` after `prune`: the network with zeros is not run again where it is known, and changes
of it are seen."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import prunus
from prunus.surgery import verify


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


def test_a_copy_keeps_what_is_known_and_large_outputs_are_not_kept(pruned, runs, monkeypatch):
    result, x = pruned
    copy.deepcopy(result).compact(x)
    assert not runs
    monkeypatch.setattr(verify, "KEPT", 3)
    again = prunus.prune(Net(), "l1-filter", 0.5, data=x, measure=False)
    assert again.proved is None
    before = len(runs)
    again.compact(x)
    assert len(runs) == before + 1
