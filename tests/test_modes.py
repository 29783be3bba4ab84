"""Copies of models: what `copy.deepcopy` gives, and over the same numbers where that is said."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunus.modes import copied, twin


class Knot(nn.Module):
    """A module that knows its parent, shares a parameter and keeps things in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Conv1d(3, 3, 1)
        self.one.again = self.one.weight
        self.same = self.one
        self.lists = [[1, 2], {"deep": [3]}]
        self.named: dict[str, Any] = {}
        self.also = self.named
        object.__setattr__(self.one, "parent", [self])
        self.register_buffer("seen", torch.arange(3.0))
        self.rnn = nn.LSTM(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.two(self.one(x)[..., None])[..., 0] + self.seen
        return self.rnn(mixed)[0]


class Own(nn.Linear):
    """One that says itself how it is copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Own":
        new = Own(self.in_features, self.out_features)
        new.load_state_dict(self.state_dict())
        new.made_by_hand = True
        return new


def check(one: Knot, other: Knot) -> None:
    assert other is not one
    assert type(other) is Knot
    assert list(other.state_dict()) == list(one.state_dict())
    theirs = other.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())
    assert other.same is other.one
    assert other.one.again is other.one.weight
    assert other.one.parent[0] is other
    assert other.lists == one.lists
    assert other.lists[1]["deep"] is not one.lists[1]["deep"]
    assert other.also is other.named
    assert other.named is not one.named
    other.one.register_forward_hook(lambda *_: None)
    assert not one.one._forward_hooks
    x = torch.ones(2, 3)
    assert torch.equal(one(x), other(x))


def test_a_copy_is_what_deepcopy_makes() -> None:
    model = Knot()
    for new in (copied(model), copy.deepcopy(model)):
        check(model, new)
        with torch.no_grad():
            new.one.weight.add_(1)
        assert not torch.equal(new.one.weight, model.one.weight)


def test_a_twin_shares_the_numbers_of_parameters_alone() -> None:
    model = Knot()
    new = twin(model)
    check(model, new)
    assert new.one.weight is not model.one.weight
    with torch.no_grad():
        new.one.weight.add_(1)
        new.seen.add_(1)
    assert torch.equal(new.one.weight, model.one.weight)
    assert not torch.equal(new.seen, model.seen)


def test_a_module_that_copies_itself_does() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2))
    assert copied(model)[1].made_by_hand


def test_buffers_over_one_memory_stay_together_in_a_copy():
    model = nn.Module()
    model.register_buffer("whole", torch.arange(6.0))
    model.register_buffer("again", model.whole.detach())
    model.register_buffer("part", torch.arange(8.0)[2:5])
    model.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
    model.register_buffer("none", None)
    model.same = nn.Module()
    model.same.register_buffer("own", model.whole)
    for new in (copied(model), twin(model)):
        for name, buffer in model.named_buffers(remove_duplicate=False):
            found = new.get_buffer(name)
            assert torch.equal(found, buffer), name
            assert found.stride() == buffer.stride(), name
            assert found.data_ptr() != buffer.data_ptr(), name
        assert new.same.own is new.whole
        assert new.none is None
        new.whole[0] = 7
        assert float(new.again[0]) == 7
        assert float(model.whole[0]) == 0


def test_a_compiled_modules_copy_runs_its_own_weights():
    """`module.compile()` leaves a function on the module that calls this very object."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))
    for compiled in (model, model[1]):
        compiled.compile(backend="eager")
    x = torch.ones(2, 3)
    for new in (copied(model), twin(model)):
        seen: list[str] = []
        new[1][0].register_forward_hook(lambda *_, seen=seen: seen.append("called"))
        assert torch.equal(new(x), model(x))
        assert seen == ["called"]
        new[1][0].weight = nn.Parameter(torch.zeros(2, 4))
        assert torch.equal(new(x), new[1][0].bias.expand(2, 2))
