"""A trial of what can be cut waits for the comparison at the end where no number meets channels."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import cut_models
import prunus
from models import ZOO, build
from prunus.coupling import coupling_of
from prunus.engine import once
from prunus.schedules import Iterative
from prunus.surgery.cut import why_whole
from prunus.surgery.probe import cuttable

NUMBERED = {
    "padded", "chunk", "split", "slice", "cross-stage", "written", "sampling",
    "resnet20-pad", "attention", "gated",
}  # fmt: skip


def network(name):
    return cut_models.build(name) if name in cut_models.NETS else build(name, samples=2)


@pytest.mark.parametrize("name", [*cut_models.NETS, *ZOO])
def test_without_numbers_a_trial_finds_nothing(name):
    model, x = network(name)
    found = coupling_of(model.eval(), x)
    assert bool(found.numbered) == (name in NUMBERED)
    assert found.numbered <= {group.name for group in found.groups}
    if not found.numbered:
        groups = [g for g in found.groups if why_whole(model, g, inexact=True) is None]
        tried = cuttable(model, groups, x)
        assert not tried.alike
        assert not tried.refused


class Shaped(nn.Module):
    """One thing is done to the hidden channels."""

    def __init__(self, change) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.change(self.one(x).relu())).relu())


@pytest.mark.parametrize(
    ("change", "numbered"),
    [
        (lambda h: h.view(2, -1), False),
        (lambda h: h.view(-1, 8), True),
        (lambda h: h.view(2, 2, -1).flatten(1), False),
        (lambda h: h[:1].expand(2, -1), False),
        (lambda h: h[:, :8], True),
        (lambda h: torch.cat([h[:, 4:], h[:, :4]], 1), True),
        (lambda h: h.roll(1, 1), True),
        (lambda h: h.roll(1, 0), True),
        (lambda h: nn.functional.pad(h, (0, 0, 1, 0))[1:], False),
        (lambda h: torch.cat(h.chunk(2, 1), 1), True),
        (lambda h: torch.cat(h.chunk(2, 0), 0), False),
        (lambda h: torch.jit.trace(nn.ReLU(), torch.zeros(2, 8))(h), True),
    ],
)
def test_what_meets_a_number(change, numbered):
    found = coupling_of(Shaped(change).eval(), torch.randn(2, 6))
    assert ("one" in found.numbered) == numbered


@pytest.fixture
def trials(monkeypatch):
    """How often a cut is tried after the comparison."""
    made = []
    tried = once.tried_groups
    monkeypatch.setattr(once, "tried_groups", lambda *a, **k: made.append(a) or tried(*a, **k))
    return made


def without(*widths: int):
    """As code that looks at a width and says nothing of it to torch."""

    def change(h: Tensor) -> Tensor:
        if h.shape[1] in widths:
            raise ValueError(f"not {h.shape[1]}")
        return h

    return change


@pytest.mark.parametrize(
    ("change", "density", "count", "refused"),
    [
        (nn.Identity(), 0.5, 0, False),
        (nn.Identity(), 0.999, 1, False),  # where a group loses nothing, nothing is seen of it
        (without(4, 5), 0.5, 1, True),
        (without(5), 0.5, 1, False),  # a trial with another width would not see it either
    ],
)
def test_what_comes_out_is_what_a_trial_before_gives(
    monkeypatch, trials, change, density, count, refused
):
    torch.manual_seed(0)
    model, x = Shaped(change), torch.randn(5, 6)
    waited = prunus.prune(model, "l1-filter", density, data=x, measure=False)
    assert len(trials) == count
    monkeypatch.setattr(sys.modules["prunus.engine.prune"], "may_wait", lambda *_: False)
    tried = prunus.prune(model, "l1-filter", density, data=x, measure=False)
    assert waited.not_pruned == tried.not_pruned
    assert waited.notes == tried.notes
    assert ("one" in waited.not_pruned) == refused
    assert (waited.plan.kept, waited.plan.value) == (tried.plan.kept, tried.plan.value)
    assert waited.cost_after == tried.cost_after
    assert waited.masks.keys() == tried.masks.keys()
    assert all(torch.equal(mask, tried.masks[key]) for key, mask in waited.masks.items())
    states = (waited.model.state_dict(), tried.model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_what_could_not_be_made_again_is_tried_before(monkeypatch):
    x, recipe = torch.randn(5, 6), prunus.recipes["l1-filter"]
    waits = []
    monkeypatch.setattr(
        sys.modules["prunus.engine.prune"],
        "may_wait",
        lambda *a: waits.append(once.may_wait(*a)) or waits[-1],
    )
    model = Shaped(nn.Identity())
    prunus.prune(model, recipe, 0.5, data=[x])
    several = replace(recipe, schedule=Iterative(2))
    prunus.prune(model, several, 0.5, data=[x], train=lambda model, step: None)
    prunus.prune(model, recipe, prunus.Budget(macs=100), data=[x])
    prunus.prune(model, recipe, 0.5, data=iter([x]), measure=False)
    assert waits == [True, False, False, False]
