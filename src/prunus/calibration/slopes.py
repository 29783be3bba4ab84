"""Backward passes that tell samples apart: inputs of layers beside slopes of their outputs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.calibration.statistics.protocol import SampleSlopes
from prunus.weights import Weight

__all__ = ["Calls", "Gates", "gated", "recorded", "sample_slopes"]

CHUNK_BYTES = 2**26  # of float64 patches and gradients of single samples held at a time
Calls = dict[str, list[tuple[Tensor, Tensor]]]
Gates = dict[str, list[Tensor]]  # by layer, (samples, in) of every call


@contextmanager
def recorded(weights: Mapping[str, Weight]) -> Iterator[Calls]:
    """The inputs and outputs of every call of the layers; hooks always go.

    A layer is given a copy of its inputs, and its successors a copy of its outputs, so that no
    operation in place, before or behind, changes what was recorded.
    """
    calls: Calls = {name: [] for name in weights}
    handles = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        copies: dict[int, Tensor] = {}

        def copied(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return copies.setdefault(id(value), value.clone())  # one tensor stays one

        return tuple(map(copied, args)), {key: copied(value) for key, value in kwargs.items()}

    def after_of(weight: Weight) -> Any:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"Layer {weight.name!r} gives a {type(output).__name__}, and slopes need the "
                    f"tensor W x + b. Exclude the layer, or use a recipe without slopes."
                )
            inputs = weight.inputs(args, kwargs)
            if inputs is None:
                raise ValueError(
                    f"Layer {weight.name!r} runs under torch.func or vmap, where slopes of single "
                    f"samples cannot be told. Exclude the layer."
                )
            calls[weight.name].append((inputs.detach(), output))
            return output.clone()

        return after

    try:
        for weight in weights.values():
            module = weight.module
            if weight.source.alone:  # else no output is that of this weight
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after_of(weight), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def gated(weights: Mapping[str, Weight]) -> Iterator[Gates]:
    """Gates on what layers read whose modules hold several weights, a one for every sample.

    Modules of other layers, and those that cannot say what they give through gates, are left
    alone. A module's output is the gated one, equal to its own but for rounding.
    """
    found: Gates = {name: [] for name in weights}
    homes: dict[nn.Module, list[Weight]] = {}
    for weight in weights.values():
        if weight.source.gated is not None:
            homes.setdefault(weight.module, []).append(weight)
    handles = []

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        run = homes[module][0].source.gated
        assert run is not None  # those alone have a hook
        names = {weight.source.parameter: weight.name for weight in homes[module]}
        gates: dict[str, Tensor] = {}

        def through(parameter: str, values: Tensor) -> Tensor:
            if parameter not in names:
                return values
            if parameter not in gates:  # the same at every step
                ones = values.new_ones(values.shape[-2:])
                gates[parameter] = ones.requires_grad_(True)
                found[names[parameter]].append(ones)
            return values * gates[parameter]

        return run(module, args, kwargs, through)

    try:
        handles += [m.register_forward_hook(after, with_kwargs=True) for m in homes]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def sample_slopes(
    weight: Weight, pairs: list[tuple[Tensor, Tensor]], size: int
) -> Iterator[SampleSlopes]:
    """The samples in blocks, so that neither their patches nor their gradients fill the memory.

    Args:
        weight: of the layer.
        pairs: inputs and slopes of the outputs, call by call.
        size: number of samples.

    Raises:
        ValueError: the vectors of single samples cannot be told apart.
    """
    name, view, module = weight.name, weight.view, weight.module

    def block(start: int, stop: int) -> SampleSlopes:
        def joined(side: int, turn: Any) -> Tensor:
            rows = [
                _by_sample(name, turn, module, pair[side][start:stop] if apart else pair[side],
                           stop - start)
                for pair in pairs
            ]  # fmt: skip
            return torch.cat(rows, dim=1)

        return SampleSlopes(inputs=joined(0, view.vectors), slopes=joined(1, view.responses))

    apart = all(len(given) == size == len(slope) for given, slope in pairs)
    step = size
    if apart:
        one = block(0, 1)
        needed = one.inputs.numel() + one.slopes.numel()
        if one.inputs.shape[1] > 1:  # gradients of single samples are formed
            needed += one.inputs.shape[2] * one.inputs.shape[3] * one.slopes.shape[3]
        step = max(1, CHUNK_BYTES // (8 * needed))
    for start in range(0, size, step):
        yield block(start, min(size, start + step))


def _by_sample(name: str, turn: Any, module: nn.Module, part: Tensor, size: int) -> Tensor:
    """Inputs or output gradients of so many samples as (samples, positions, groups, width)."""
    turned: Tensor = turn(module, part)
    if turned.shape[0] % size:
        raise ValueError(
            f"Layer {name!r} sees {turned.shape[0]} vectors for {size} samples, so squared "
            f"gradients of single samples cannot be told apart. Exclude the layer."
        )
    exact = turned.dtype in (torch.float32, torch.float64)
    return turned.reshape(size, -1, *turned.shape[1:]).to(turned.dtype if exact else torch.float32)
