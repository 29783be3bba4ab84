"""Recurrent layers, followed as wholes: a hidden unit is one class, whatever kernel computes it.

Unit h of a layer with g gates is made by rows h, H + h, …, (g − 1) H + h of `weight_ih`,
`weight_hh` and their biases, and read by column h of `weight_hh`, by the layer on top and by
whatever reads the outputs. The sequence of outputs, the last hidden and the last cell state carry
the same classes, and the first states belong to them. A unit without rows emits exactly nothing
from a state of zero: an LSTM c = ½ c + ½ tanh 0, a GRU h = ½ h + ½ tanh 0, an RNN tanh 0 or relu 0.

A module has one `hidden_size`, so that unit h of all its layers and directions is one class.
Where it projects its hidden state (`proj_size`), what is read is a class of its own: a row of every
`weight_hr` and a column of `weight_hh`; a cell unit is read by its column of `weight_hr` alone.
Cells are layers of one step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from prunus.coupling.calls import Refused, Trace, spread
from prunus.coupling.labels import DATA
from prunus.coupling.weights import Weight

__all__ = ["MODULES", "ModuleRule", "recurrent"]

GIVEN = (
    "its first states are given from outside, as wide as the layer, and would have to be cut "
    "there; leave them out (they are then zero), learn them as a parameter, or make them by a layer"
)

# The trace, the module, the arguments of its call and what it gave -> labels of what it gave.
ModuleRule = Callable[
    [Trace, Any, tuple[Any, ...], Mapping[str, Any], Any], list[tuple[Tensor, Tensor]]
]


def recurrent(
    trace: Trace, module: Any, args: tuple[Any, ...], keywords: Mapping[str, Any], given: Any
) -> list[tuple[Tensor, Tensor]]:
    """`nn.LSTM`, `nn.GRU` and `nn.RNN` of any number of layers and directions, and their cells."""
    ends, ways = _layers(module)
    leaves = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ()))
    narrow = ("weight_hr",) if getattr(module, "proj_size", 0) else ()
    every = (*leaves, *narrow)
    found = {leaf + end: _own(trace, module, leaf + end) for end in ends for leaf in every}
    first = found["weight_hh" + ends[0]]
    units = trace.made(first, 0)[: module.hidden_size]
    states = trace.made(found["weight_hr" + ends[0]], 0) if narrow else units
    inputs = _values(args[0] if args else keywords["input"])
    below = trace.labels.column(trace.read(inputs), -1, module.input_size, f"`{first.name}`")
    for i, end in enumerate(ends):
        if i and i % ways == 0:
            below = states.repeat(ways)
        for leaf, read in (("weight_ih", below), ("weight_hh", states)):
            _consumes(trace, found[leaf + end], read)
        for leaf in leaves:
            _makes(trace, found[leaf + end], units)
        for leaf in narrow:
            _consumes(trace, found[leaf + end], units)
            _makes(trace, found[leaf + end], states)
    kinds = (states, units)  # of a hidden and of a cell state
    before = _tensors(args[1] if len(args) > 1 else keywords.get("hx"))
    for state, own in zip(before, kinds, strict=False):
        given_labels = trace.read(state)
        if bool((given_labels == DATA).any()):
            trace.labels.refuse(own, GIVEN)
        trace.labels.meet(spread(own, -1, state.ndim), given_labels, f"`{first.name}`")
    sequence, last = (None, given) if isinstance(module, nn.RNNCellBase) else given
    labels = [
        (tensor, spread(own, -1, tensor.ndim))
        for tensor, own in zip(_tensors(last), kinds, strict=False)
    ]
    if sequence is not None:
        outputs = _values(sequence)
        labels.append((outputs, spread(states.repeat(ways), -1, outputs.ndim)))
    return labels


def _layers(module: Any) -> tuple[list[str], int]:
    """How the names of the parameters of each layer and direction end, and how many directions."""
    if isinstance(module, nn.RNNCellBase):
        return [""], 1
    ways = ("", "_reverse") if module.bidirectional else ("",)
    return [f"_l{layer}{way}" for layer in range(module.num_layers) for way in ways], len(ways)


def _tensors(state: Any) -> tuple[Tensor, ...]:
    """A hidden state, or a hidden and a cell state; none where none is given."""
    if state is None:
        return ()
    return tuple(state) if isinstance(state, list | tuple) else (state,)


def _own(trace: Trace, module: nn.Module, leaf: str) -> Weight:
    """A parameter of the module, whole and its own."""
    tensor = module._parameters.get(leaf)
    weight = None if tensor is None else trace.weight(tensor)
    if weight is None or not weight.whole:
        raise Refused("its weights are computed in the forward pass")
    return weight


def _values(sequence: Any) -> Tensor:
    """The values of a sequence, which may be packed."""
    values: Tensor = sequence.data if isinstance(sequence, PackedSequence) else sequence
    return values


def _consumes(trace: Trace, weight: Weight, classes: Tensor) -> None:
    trace.member(weight.name, 1, "in", torch.arange(len(classes), device="cpu"), classes)
    trace.layer("consumer", weight.name, classes)


def _makes(trace: Trace, weight: Weight, units: Tensor) -> None:
    """Every gate's rows are those of the same units."""
    rows = trace.made(weight, 0)
    trace.labels.unite(rows, units.repeat(len(rows) // len(units)))
    trace.member(weight.name, 0, "out", torch.arange(len(rows), device="cpu"), rows)
    if len(weight.axes) > 1:
        trace.layer("producer", weight.name, rows)


MODULES: dict[type, ModuleRule] = dict.fromkeys(
    (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell), recurrent
)
