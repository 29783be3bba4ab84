"""A call of a recurrent layer laid out with time first, whatever form it came in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

__all__ = ["Run", "call_of", "laid_out", "turned", "weights_of_layer"]

Sequences = Float[Tensor, "time batch _"]


def call_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The input and the first state of a call."""
    inputs = args[0] if args else kwargs["input"]
    return inputs, args[1] if len(args) > 1 else kwargs.get("hx")


@dataclass(frozen=True, eq=False)
class Run:
    """A call laid out with time first.

    Attributes:
        inputs: of the first layer.
        real: True for the steps of each sequence, False behind its end.
        hidden: first hidden states, one for each layer and direction.
        cell: first cell states likewise, or None where there are none.
        packed: what the sequences came packed in, so that steps behind an end do not exist.
        alone: whether it is one sequence without an axis of samples.
    """

    inputs: Sequences
    real: Bool[Tensor, "time batch"]
    hidden: Float[Tensor, "layers batch hidden"]
    cell: Float[Tensor, "layers batch cells"] | None
    packed: PackedSequence | None
    alone: bool


def laid_out(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Run:
    """The call of a recurrent module with (args, kwargs): packed, batched or a single sequence."""
    given, state = call_of(args, kwargs)
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
    return Run(inputs, real.to(inputs.device), first, cell, given if packed else None, alone)


def weights_of_layer(module: Any, layer: int, way: int) -> list[Tensor]:
    """The parameters of one layer and direction, as the kernels of torch take them."""
    end = f"_l{layer}" + ("_reverse" if way else "")
    kinds = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if module.bias else [])
    if module.proj_size:
        kinds.append("weight_hr")
    return [getattr(module, kind + end) for kind in kinds]


def turned(run: Run, values: Sequences) -> Sequences:
    """Every sequence backwards; what lies behind its end stays behind it."""
    lengths = run.real.sum(0)
    steps = torch.arange(len(values), device=values.device)[:, None]
    place = torch.where(run.real, lengths[None] - 1 - steps, steps)
    return values.gather(0, place[..., None].expand_as(values))
