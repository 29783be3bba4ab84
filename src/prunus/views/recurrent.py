"""Recurrent layers and cells: what each of their matrices multiplies, step by step.

A layer's hidden state before a step is its output at the step before, so the inputs of
`weight_hh` are the output sequence moved by one, the first state ahead of it. Layers on top of
others are run once more, one after the other, and give the inputs of the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from prunus.ambient import quiet
from prunus.views.linear import LinearView
from prunus.views.protocol import Matrix

__all__ = ["CellView", "RecurrentView"]

Sequences = Float[Tensor, "time batch _"]


@dataclass(frozen=True)
class RecurrentView:
    """`nn.LSTM`, `nn.GRU` and `nn.RNN`: of every layer and direction the input, the hidden and the
    projection weight."""

    def matrices(self, module: nn.RNNBase) -> Sequence[Matrix]:
        found = []
        for layer in range(module.num_layers):
            for way in range(2 if module.bidirectional else 1):
                end = f"_l{layer}" + ("_reverse" if way else "")
                for kind in ("ih", "hh", "hr"):
                    if kind == "hr" and not module.proj_size:
                        continue
                    found.append(
                        Matrix(
                            parameter=f"weight_{kind}{end}",
                            view=LinearView(),
                            bias=f"bias_{kind}{end}" if module.bias and kind != "hr" else None,
                            inputs=_reader(layer, way, kind),
                            alone=False,
                            on_request=True,
                        )
                    )
        return found


@dataclass(frozen=True)
class CellView:
    """`nn.LSTMCell`, `nn.GRUCell` and `nn.RNNCell`: one step, whose state is an argument."""

    def matrices(self, module: nn.RNNCellBase) -> Sequence[Matrix]:
        return [
            Matrix(
                parameter=f"weight_{kind}",
                view=LinearView(),
                bias=f"bias_{kind}" if module.bias else None,
                inputs=reader,
                alone=False,
                on_request=True,
            )
            for kind, reader in (("ih", _cell_input), ("hh", _cell_state))
        ]


def _call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The input and the first state of a call."""
    inputs = args[0] if args else kwargs["input"]
    return inputs, args[1] if len(args) > 1 else kwargs.get("hx")


def _cell_input(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = _call(args, kwargs)[0]
    return found


def _cell_state(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    inputs, state = _call(args, kwargs)
    if state is None:
        state = inputs.new_zeros(*inputs.shape[:-1], module.hidden_size)
    found: Tensor = state[0] if isinstance(state, tuple) else state
    return found


@dataclass(frozen=True, eq=False)
class _Run:
    """A call laid out with time first.

    Attributes:
        inputs: of the first layer.
        real: True for the steps of each sequence, False behind its end.
        hidden: first hidden states, one for each layer and direction.
        cell: first cell states likewise, or None where there are none.
        packed: whether the sequences came packed, so that steps behind an end do not exist.
    """

    inputs: Sequences
    real: Bool[Tensor, "time batch"]
    hidden: Float[Tensor, "layers batch hidden"]
    cell: Float[Tensor, "layers batch cells"] | None
    packed: bool


def _laid_out(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Run:
    given, state = _call(args, kwargs)
    packed = isinstance(given, PackedSequence)
    alone = False
    if packed:
        inputs, lengths = pad_packed_sequence(given)
    else:
        alone = given.ndim == 2
        inputs = given[:, None] if alone else given
        if module.batch_first and not alone:
            inputs = inputs.transpose(0, 1)
        lengths = torch.full((inputs.shape[1],), len(inputs))
    real = torch.arange(len(inputs))[:, None] < lengths[None]
    first, second = state if isinstance(state, tuple) else (state, None)
    count = module.num_layers * (2 if module.bidirectional else 1)
    wide = module.proj_size or module.hidden_size
    if first is None:
        first = inputs.new_zeros(count, inputs.shape[1], wide)
        second = inputs.new_zeros(count, inputs.shape[1], module.hidden_size)
    elif alone:
        first, second = (None if s is None else s[:, None] for s in (first, second))
    cell = second if module.mode == "LSTM" else None
    return _Run(inputs, real.to(inputs.device), first, cell, packed)


def _reader(layer: int, way: int, kind: str) -> Callable[..., Tensor]:
    def inputs(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        with torch.no_grad():
            run = _laid_out(module, args, kwargs)
            below = run.inputs
            for under in range(layer):
                both = range(2 if module.bidirectional else 1)
                below = torch.cat([_outputs(module, run, below, under, w) for w in both], dim=-1)
            if kind == "ih":
                return _rows(run, below)
            states = _before(module, run, below, layer, way)
            if kind == "hh":
                return _rows(run, states)
            return _rows(run, _unprojected(module, run, below, states, layer, way))

    return inputs


def _rows(run: _Run, values: Sequences) -> Tensor:
    """Samples before time; of packed sequences the steps that exist, one after the other."""
    return values.transpose(0, 1)[run.real.T] if run.packed else values.transpose(0, 1)


def _weights(module: Any, layer: int, way: int) -> list[Tensor]:
    end = f"_l{layer}" + ("_reverse" if way else "")
    kinds = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if module.bias else [])
    if module.proj_size:
        kinds.append("weight_hr")
    return [getattr(module, kind + end) for kind in kinds]


def _state(module: Any, states: Tensor, layer: int, way: int) -> Tensor:
    place = layer * (2 if module.bidirectional else 1) + way
    return states[place : place + 1].contiguous()


RUNS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


def _turned(run: _Run, values: Sequences) -> Sequences:
    """Every sequence backwards; what lies behind its end stays behind it."""
    lengths = run.real.sum(0)
    steps = torch.arange(len(values), device=values.device)[:, None]
    place = torch.where(run.real, lengths[None] - 1 - steps, steps)
    return values.gather(0, place[..., None].expand_as(values))


def _outputs(module: Any, run: _Run, below: Sequences, layer: int, way: int) -> Sequences:
    """One direction of one layer."""
    hidden = _state(module, run.hidden, layer, way)
    state: Any = hidden
    if run.cell is not None:
        state = (hidden, _state(module, run.cell, layer, way))
    given = _turned(run, below) if way else below
    weights = _weights(module, layer, way)
    # 1 layer, no dropout, not training, one direction, time first
    with quiet(UserWarning):  # on GPUs: a layer's weights do not lie in one piece
        run_one = RUNS[module.mode]
        found = run_one(given, state, weights, module.bias, 1, 0.0, False, False, False)[0]
    return _turned(run, found) if way else found


def _before(module: Any, run: _Run, below: Sequences, layer: int, way: int) -> Sequences:
    """The hidden state before every step."""
    outputs = _outputs(module, run, below, layer, way)
    if way:
        outputs = _turned(run, outputs)
    first = _state(module, run.hidden, layer, way).to(outputs)
    moved = torch.cat([first, outputs[:-1]])
    return _turned(run, moved) if way else moved


def _unprojected(
    module: Any, run: _Run, below: Sequences, states: Sequences, layer: int, way: int
) -> Sequences:
    """What an LSTM's projection reads: o · tanh(c) at every step."""
    weights = _weights(module, layer, way)
    gates = below @ weights[0].T + states @ weights[1].T
    if module.bias:
        gates = gates + weights[2] + weights[3]
    if way:
        gates = _turned(run, gates)
    add, keep, new, show = gates.chunk(4, dim=-1)
    assert run.cell is not None  # only LSTMs project
    cell = _state(module, run.cell, layer, way)[0]
    found = []
    for step in range(len(gates)):
        cell = keep[step].sigmoid() * cell + add[step].sigmoid() * new[step].tanh()
        found.append(show[step].sigmoid() * cell.tanh())
    answer = torch.stack(found)
    return _turned(run, answer) if way else answer
