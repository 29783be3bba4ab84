"""Gradients with respect to the weights: of the loss, and squared ones of every output."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunus.calibration.batches import call, size_of
from prunus.calibration.forward import loss_of, tensor_of
from prunus.calibration.padding import padding_of
from prunus.weights import Weight

__all__ = ["PROBES", "gradient_sums"]

PROBES = 64  # outputs beyond which random signs replace one backward pass per output
CHUNK_BYTES = 2**26  # of float64 patches and gradients of single samples held at a time


def gradient_sums(
    model: nn.Module,
    names: Mapping[str, Weight],
    batch: Any,
    statistics: set[str],
    *,
    loss: Any = None,
    generator: Generator,
) -> dict[str, dict[str, Tensor]]:
    """Sums over the samples of one batch, {statistic: {name: Float[out in]}}, float64.

    `grad` is ∂L/∂W with its sign, times the number of samples: a loss that is a mean adds up to the
    same however it is batched. `sensitivity` is Σ over samples and outputs o of (∂F_o/∂W)²: one
    backward pass per output, or 64 random sign vectors where there are more than 64 outputs (it is
    then unbiased). The model runs once; parameters' own `.grad` stay as they are.

    Args:
        model: in evaluation mode.
        names: the layers' weights.
        batch: one batch on the model's device.
        statistics: of `grad` and `sensitivity`, those that are wanted.
        loss: for `grad`, see `calibrate`.
        generator: of the random signs.

    Raises:
        ValueError: a gradient is NaN or infinite (the layer is named), or no loss applies.
    """
    weights: list[Any] = [weight.parameter for weight in names.values()]
    flags = [w.requires_grad for w in weights]
    size = size_of(batch) or 1
    found: dict[str, dict[str, Tensor]] = {}
    for w in weights:
        w.requires_grad_(True)
    try:
        with torch.enable_grad(), _recorded(names, "sensitivity" in statistics) as calls:
            output = call(model, batch)
            if "grad" in statistics:
                value = loss_of(output, batch, loss)
                retain = "sensitivity" in statistics
                grads = torch.autograd.grad(value, weights, retain_graph=retain, allow_unused=True)
                found["grad"] = {
                    name: size * _matrix(weight, torch.zeros_like(w) if g is None else g)
                    for (name, weight), w, g in zip(names.items(), weights, grads, strict=True)
                }
            if "sensitivity" in statistics:
                signals = _directions(tensor_of(output), batch, generator)
                found["sensitivity"] = _squared(names, calls, *signals, size)
    finally:
        for w, flag in zip(weights, flags, strict=True):
            w.requires_grad_(flag)
    for sums in found.values():
        for name, total in sums.items():
            if not bool(torch.isfinite(total).all()):
                raise ValueError(
                    f"Layer {name!r} has NaN or infinite gradients. Check the data and the loss."
                )
    return found


def _matrix(weight: Weight, values: Tensor) -> Tensor:
    return weight.matrix(values.detach()).to(torch.float64)


@contextmanager
def _recorded(
    names: Mapping[str, Weight], wanted: bool
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """The inputs and outputs of every call of the layers; hooks always go."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    handles = []

    def hook_for(weight: Weight) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            inputs = weight.inputs(args, kwargs)
            assert inputs is not None  # a layer that ran had inputs
            calls[weight.name].append((inputs.detach(), output))
            return output.clone()  # an activation in place would change what was recorded

        return hook

    try:
        if wanted:
            for weight in names.values():
                hook = hook_for(weight)
                handles.append(weight.module.register_forward_hook(hook, with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _directions(output: Tensor, batch: Any, generator: Generator) -> tuple[Tensor, list[Tensor]]:
    """The output as (samples, outputs), and the signals to send back through it.

    Their squares, summed, weigh every output once; those at padding weigh nothing.
    """
    flat = output.flatten(1) if output.ndim > 1 else output[:, None]
    real = torch.ones_like(flat)
    padding = padding_of(batch)
    mask = None if padding is None else padding.of_output(output)
    if mask is not None:
        shape = (*mask.shape, *[1] * (output.ndim - 2))
        real = mask.to(output.dtype).reshape(shape).expand(output.shape).flatten(1)
    count = flat.shape[1]
    if count <= PROBES:
        return flat, [real * row for row in torch.eye(count, dtype=flat.dtype, device=flat.device)]
    bits = torch.randint(0, 2, (PROBES, *flat.shape), generator=generator)
    signs = (2 * bits - 1).to(flat) / math.sqrt(PROBES)
    return flat, list(real * signs)


def _squared(
    names: Mapping[str, Weight],
    calls: Mapping[str, list[tuple[Tensor, Tensor]]],
    output: Tensor,
    signals: list[Tensor],
    size: int,
) -> dict[str, Tensor]:
    ran = [name for name in names if calls[name]]
    totals: dict[str, Tensor] = {}
    outputs = [out for name in ran for _, out in calls[name]]
    for place, signal in enumerate(signals):
        last = place + 1 == len(signals)
        grads = torch.autograd.grad(
            output, outputs, signal, retain_graph=not last, allow_unused=True
        )
        slopes = iter(grads)
        for name in ran:
            pairs = [
                (given, torch.zeros_like(out) if slope is None else slope)
                for (given, out), slope in zip(calls[name], slopes, strict=False)
            ]
            square = _summed_squares(name, names[name], pairs, size)
            totals[name] = square if place == 0 else totals[name] + square
    return totals


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


def _summed_squares(
    name: str, weight: Weight, pairs: list[tuple[Tensor, Tensor]], size: int
) -> Tensor:
    """Σ over samples of (Σ over positions and calls of slope · input)², as (out, in).

    Samples are taken in blocks, so that neither their patches nor their gradients fill the memory.
    """
    view, module = weight.view, weight.module

    def block(start: int, stop: int) -> tuple[Tensor, Tensor]:
        found = []
        for side, turn in enumerate((view.vectors, view.responses)):
            rows = [
                _by_sample(name, turn, module, pair[side][start:stop] if apart else pair[side],
                           stop - start)
                for pair in pairs
            ]  # fmt: skip
            found.append(torch.cat(rows, dim=1))
        return found[0], found[1]

    apart = all(len(given) == size == len(slope) for given, slope in pairs)
    step = size
    if apart:
        one, other = block(0, 1)
        needed = one.numel() + other.numel()
        if one.shape[1] > 1:  # gradients of single samples are formed
            needed += one.shape[2] * one.shape[3] * other.shape[3]
        step = max(1, CHUNK_BYTES // (8 * needed))
    total: Tensor | None = None
    for start in range(0, size, step):
        vectors, slopes = block(start, min(size, start + step))
        if vectors.shape[1] == 1:
            powers = [x[:, 0].to(torch.float64).square() for x in (slopes, vectors)]
            part = torch.einsum("ngo,ngi->goi", *powers)
        else:
            gradients = slopes.permute(0, 2, 3, 1) @ vectors.permute(0, 2, 1, 3)
            part = gradients.to(torch.float64).square().sum(dim=0)
        total = part if total is None else total + part
    assert total is not None  # there is a sample
    return total.reshape(-1, total.shape[-1])
