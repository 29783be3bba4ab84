"""Recurrent layers and cells: what each of their matrices multiplies, step by step.

A layer's hidden state before a step is its output at the step before, so the inputs of
`weight_hh` are the output sequence moved by one, the first state ahead of it. Layers on top of
others are run once more, one after the other, and give the inputs of the next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.ambient import quiet
from prunus.views.gated import gated_cell, gated_layers
from prunus.views.laid_out import Run, call_of, laid_out, turned, weights_of_layer
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
                            gated=gated_layers,
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
                gated=gated_cell,
                alone=False,
                on_request=True,
            )
            for kind, reader in (("ih", _cell_input), ("hh", _cell_state))
        ]


def _cell_input(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = call_of(args, kwargs)[0]
    return found


def _cell_state(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    inputs, state = call_of(args, kwargs)
    if state is None:
        state = inputs.new_zeros(*inputs.shape[:-1], module.hidden_size)
    found: Tensor = state[0] if isinstance(state, tuple) else state
    return found


def _reader(layer: int, way: int, kind: str) -> Callable[..., Tensor]:
    def inputs(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        with torch.no_grad():
            run = laid_out(module, args, kwargs)
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


def _rows(run: Run, values: Sequences) -> Tensor:
    """Samples before time; of packed sequences the steps that exist, one after the other."""
    return values.transpose(0, 1)[run.real.T] if run.packed is not None else values.transpose(0, 1)


def _state(module: Any, states: Tensor, layer: int, way: int) -> Tensor:
    place = layer * (2 if module.bidirectional else 1) + way
    return states[place : place + 1].contiguous()


RUNS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


def _outputs(module: Any, run: Run, below: Sequences, layer: int, way: int) -> Sequences:
    """One direction of one layer."""
    hidden = _state(module, run.hidden, layer, way)
    state: Any = hidden
    if run.cell is not None:
        state = (hidden, _state(module, run.cell, layer, way))
    given = turned(run, below) if way else below
    weights = weights_of_layer(module, layer, way)
    # 1 layer, no dropout, not training, one direction, time first
    with quiet(UserWarning):  # on GPUs: a layer's weights do not lie in one piece
        run_one = RUNS[module.mode]
        found = run_one(given, state, weights, module.bias, 1, 0.0, False, False, False)[0]
    return turned(run, found) if way else found


def _before(module: Any, run: Run, below: Sequences, layer: int, way: int) -> Sequences:
    """The hidden state before every step."""
    outputs = _outputs(module, run, below, layer, way)
    if way:
        outputs = turned(run, outputs)
    first = _state(module, run.hidden, layer, way).to(outputs)
    moved = torch.cat([first, outputs[:-1]])
    return turned(run, moved) if way else moved


def _unprojected(
    module: Any, run: Run, below: Sequences, states: Sequences, layer: int, way: int
) -> Sequences:
    """What an LSTM's projection reads: o · tanh(c) at every step."""
    weights = weights_of_layer(module, layer, way)
    gates = below @ weights[0].T + states @ weights[1].T
    if module.bias:
        gates = gates + weights[2] + weights[3]
    if way:
        gates = turned(run, gates)
    add, keep, new, show = gates.chunk(4, dim=-1)
    assert run.cell is not None  # only LSTMs project
    cell = _state(module, run.cell, layer, way)[0]
    found = []
    for step in range(len(gates)):
        cell = keep[step].sigmoid() * cell + add[step].sigmoid() * new[step].tanh()
        found.append(show[step].sigmoid() * cell.tanh())
    answer = torch.stack(found)
    return turned(run, answer) if way else answer
