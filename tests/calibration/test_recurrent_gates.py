"""Slopes along gates on what recurrent weights read, against gradients of single samples."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import prunus
from prunus import Recipe, calibrate
from prunus.coupling import couple
from prunus.granularity import Node
from prunus.scores import Gate, Taylor
from prunus.views.gated import gated_cell, gated_layers

FORMS = [
    (kind, layers, ways, options)
    for kind in ("LSTM", "GRU", "RNN")
    for layers, ways in ((1, 1), (2, 2))
    for options in ({}, {"bias": False, "batch_first": True})
] + [("LSTM", 2, 2, {"proj_size": 3}), ("RNN", 1, 1, {"nonlinearity": "relu"})]


def values(output):
    """All tensors of a call's answer."""
    sequence, last = output
    flat = sequence.data if hasattr(sequence, "batch_sizes") else sequence
    return [flat, *(last if isinstance(last, tuple) else (last,))]


@pytest.mark.parametrize(("kind", "layers", "ways", "options"), FORMS)
@pytest.mark.parametrize("form", ["batch", "packed", "alone", "states"])
def test_gates_of_one_leave_the_module_as_it_is(kind, layers, ways, options, form):
    torch.manual_seed(0)
    module = getattr(nn, kind)(5, 4, num_layers=layers, bidirectional=ways == 2, **options).double()
    first = bool(options.get("batch_first"))
    x = torch.randn((3, 6, 5) if first else (6, 3, 5), dtype=torch.float64)
    args = (x,)
    if form == "packed":
        args = (pack_padded_sequence(x, torch.tensor([2, 6, 4]), first, enforce_sorted=False),)
    if form == "alone":
        args = (x[0],)
    if form == "states":
        wide = options.get("proj_size", 4)
        state = torch.randn(layers * ways, 3, wide, dtype=torch.float64)
        cell = torch.randn(layers * ways, 3, 4, dtype=torch.float64)
        args = (x, (state, cell) if kind == "LSTM" else state)
    read = set()

    def through(name, given):
        read.add(name)
        return given * 1.0

    expected, found = module(*args), gated_layers(module, args, {}, through)
    for one, other in zip(values(expected), values(found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert read == {n for n, _ in module.named_parameters() if n.startswith("weight")}
    if form == "packed":
        assert torch.equal(expected[0].batch_sizes, found[0].batch_sizes)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("given", [False, True])
def test_gated_cells(kind, given):
    torch.manual_seed(0)
    cell, x = getattr(nn, kind)(5, 4).double(), torch.randn(3, 5, dtype=torch.float64)
    state = torch.randn(3, 4, dtype=torch.float64)
    args = (x, (state, state * 2) if kind == "LSTMCell" else state) if given else (x,)
    expected, found = cell(*args), gated_cell(cell, args, {}, lambda name, read: read)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Net(nn.Module):
    """A layer, a recurrent one, and a head on all steps."""

    def __init__(self, kind):
        super().__init__()
        self.enter, self.head = nn.Linear(3, 4), nn.Linear(5, 3)
        self.rnn = getattr(nn, kind)(4, 5, batch_first=True)

    def forward(self, x):
        return self.head(self.rnn(torch.tanh(self.enter(x)))[0].mean(1))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_class_slopes_are_those_of_single_samples(kind):
    """E t² of every class: column sums of W ∘ ∂L_n/∂W over all layers that read it, 1e-10."""
    torch.manual_seed(0)
    model = Net(kind).double().eval()
    x, y = torch.randn(6, 7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0, 2])
    weights = dict(model.named_parameters())
    groups = couple(model, x).groups
    assert [group.size for group in groups] == [4, 5]
    expected = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    for one, label in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(model(one[None]), label[None])
        slopes = dict(zip(weights, torch.autograd.grad(loss, [*weights.values()]), strict=True))
        for group in groups:
            t = torch.zeros(group.size, dtype=torch.float64)
            for slot in group.slots:
                if slot.role == "in":
                    columns = (weights[slot.parameter] * slopes[slot.parameter]).sum(0)
                    t.index_add_(0, slot.unit, columns[slot.index].detach())
            expected[group.name] += t.square() / len(x)
    calibration = calibrate(model, [(x[:4], y[:4]), (x[4:], y[4:])], "gate", layers="*")
    for group in groups:
        names = list(group.consumers)
        assert len(names) == (1 if group.size == 4 else 2)
        for name in names:
            found = calibration[name].classes[group.name]["gate"][2]
            torch.testing.assert_close(found, expected[group.name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("score", [Taylor(), Gate(of="output"), Gate()])
def test_recurrent_nets_are_pruned_by_slopes(score):
    torch.manual_seed(0)
    model, x, y = Net("LSTM").eval(), torch.randn(32, 7, 3), torch.randint(0, 3, (32,))
    recipe = Recipe(granularity=Node(), score=score)
    pruned = prunus.prune(model, recipe, 0.6, data=[(x, y)], layers="*")
    assert pruned.plan.kept == {"enter": 3, "rnn.weight_ih_l0": 3}
    torch.testing.assert_close(pruned.compact()(x), pruned.model(x))
