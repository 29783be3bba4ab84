"""Recurrent layers with a gate on what each of their weights reads, sample by sample.

The derivative along such a gate is the column sum of W ∘ ∂f/∂W for every sample, which the kernels
of torch do not tell. Steps are written out here; the gates are factors of what is read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from prunus.views.laid_out import Run, call_of, laid_out, turned, weights_of_layer
from prunus.views.protocol import Through

__all__ = ["gated_cell", "gated_layers"]

# What the inputs and the state give, and the cell's or the hidden state before -> hidden, cell.
Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _lstm(given: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    add, keep, new, show = (given + state).chunk(4, -1)
    cell = keep.sigmoid() * cell + add.sigmoid() * new.tanh()
    return show.sigmoid() * cell.tanh(), cell


def _gru(given: Tensor, state: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    (ir, iz, new), (hr, hz, old) = given.chunk(3, -1), state.chunk(3, -1)
    keep = (iz + hz).sigmoid()
    hidden = (1 - keep) * (new + (ir + hr).sigmoid() * old).tanh() + keep * hidden
    return hidden, hidden


def _tanh(given: Tensor, state: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    hidden = (given + state).tanh()
    return hidden, hidden


def _relu(given: Tensor, state: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    hidden = (given + state).relu()
    return hidden, hidden


STEPS: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}
CELLS: dict[str, Step] = {"LSTMCell": _lstm, "GRUCell": _gru, "tanh": _tanh, "relu": _relu}


def gated_layers(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], through: Through
) -> tuple[Any, Any]:
    """What `nn.LSTM`, `nn.GRU` or `nn.RNN` gives, its weights reading through gates.

    Args:
        module: it, in evaluation mode.
        args: of its call.
        kwargs: of its call.
        through: (parameter, what it reads) -> that through its gate.

    Returns:
        Outputs and last states in the form of the module's own.
    """
    run = laid_out(module, args, kwargs)
    below, hidden, cells = run.inputs, [], []
    ways = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        found = [_direction(module, run, below, layer, way, through) for way in range(ways)]
        below = torch.cat([outputs for outputs, _, _ in found], -1)
        hidden += [last for _, last, _ in found]
        cells += [last for _, _, last in found]
    last: Any = torch.stack(hidden)
    cell = torch.stack(cells)
    if run.alone:
        last, cell = last[:, 0], cell[:, 0]
    return _as_given(module, run, below), (last, cell) if module.mode == "LSTM" else last


def _direction(
    module: Any, run: Run, below: Tensor, layer: int, way: int, through: Through
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last hidden and last cell state of one direction of one layer."""
    end = f"_l{layer}" + ("_reverse" if way else "")
    weights = weights_of_layer(module, layer, way)
    place = layer * (2 if module.bidirectional else 1) + way
    hidden = run.hidden[place]
    cell = hidden if run.cell is None else run.cell[place]
    given = through(f"weight_ih{end}", turned(run, below) if way else below) @ weights[0].T
    bias = weights[3] if module.bias else None
    if module.bias:
        given = given + weights[2]
    real = run.real[..., None]  # sequences that were turned begin at their ends, and stop alike
    outputs = []
    for step in range(len(given)):
        state = through(f"weight_hh{end}", hidden) @ weights[1].T
        state = state if bias is None else state + bias
        new, now = STEPS[module.mode](given[step], state, cell)
        if module.proj_size:
            new = through(f"weight_hr{end}", new) @ weights[-1].T
        hidden = torch.where(real[step], new, hidden)
        cell = torch.where(real[step], now, cell)
        outputs.append(hidden)
    found = torch.stack(outputs)
    return turned(run, found) if way else found, hidden, cell


def _as_given(module: Any, run: Run, outputs: Tensor) -> Any:
    """Outputs of (time, batch, width) in the form in which the module gives them."""
    if run.packed is not None:
        order = run.packed.sorted_indices
        rows = outputs if order is None else outputs[:, order]
        sizes = run.packed.batch_sizes.tolist()
        data = torch.cat([rows[step, :size] for step, size in enumerate(sizes)])
        return PackedSequence(data, run.packed.batch_sizes, order, run.packed.unsorted_indices)
    if run.alone:
        return outputs[:, 0]
    return outputs.transpose(0, 1) if module.batch_first else outputs


def gated_cell(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], through: Through
) -> Any:
    """What `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` gives; see `gated_layers`."""
    inputs, state = call_of(args, kwargs)
    if state is None:
        state = inputs.new_zeros(*inputs.shape[:-1], module.hidden_size)
        state = (state, state) if isinstance(module, torch.nn.LSTMCell) else state
    hidden, cell = state if isinstance(state, tuple) else (state, state)
    given = through("weight_ih", inputs) @ module.weight_ih.T
    kept = through("weight_hh", hidden) @ module.weight_hh.T
    if module.bias:
        given, kept = given + module.bias_ih, kept + module.bias_hh
    kind = getattr(module, "nonlinearity", type(module).__name__)
    new, now = CELLS[kind](given, kept, cell)
    return (new, now) if isinstance(state, tuple) else new
