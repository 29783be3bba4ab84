"""Gradients with respect to the weights: of the loss, and squared ones of every output."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunus.calibration.batches import attention_mask, call, size_of
from prunus.calibration.forward import loss_of, tensor_of
from prunus.layer import view_of

__all__ = ["PROBES", "gradient_sums"]

PROBES = 64  # outputs beyond which random signs replace one backward pass per output
CHUNK_BYTES = 2**25  # of float64 gradients of single samples held at a time


def gradient_sums(
    model: nn.Module,
    names: Mapping[str, nn.Module],
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
        names: the layers' modules.
        batch: one batch on the model's device.
        statistics: of `grad` and `sensitivity`, those that are wanted.
        loss: for `grad`, see `calibrate`.
        generator: of the random signs.

    Raises:
        ValueError: a gradient is NaN or infinite (the layer is named), or no loss applies.
    """
    weights: list[Any] = [module.weight for module in names.values()]
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
                    name: size * _matrix(module, torch.zeros_like(w) if g is None else g)
                    for (name, module), w, g in zip(names.items(), weights, grads, strict=True)
                }
            if "sensitivity" in statistics:
                signals = _directions(tensor_of(output), attention_mask(batch), generator)
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


def _matrix(module: Any, values: Tensor) -> Tensor:
    view = view_of(module)
    assert view is not None  # the caller selected modules that have one
    return view.matrix(module, values.detach()).to(torch.float64)


@contextmanager
def _recorded(
    names: Mapping[str, nn.Module], wanted: bool
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """The inputs and outputs of every call of the layers; hooks always go."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    handles = []

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            inputs = args[0] if args else next(iter(kwargs.values()))
            calls[name].append((inputs.detach(), output))
            return output.clone()  # an activation in place would change what was recorded

        return hook

    try:
        if wanted:
            for name, module in names.items():
                handles.append(module.register_forward_hook(hook_for(name), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _directions(
    output: Tensor, mask: Tensor | None, generator: Generator
) -> tuple[Tensor, list[Tensor]]:
    """The output as (samples, outputs), and the signals to send back through it.

    Their squares, summed, weigh every output once; those at padding weigh nothing.
    """
    flat = output.flatten(1) if output.ndim > 1 else output[:, None]
    real = torch.ones_like(flat)
    if mask is not None and output.ndim > 1 and output.shape[:2] == mask.shape:
        shape = (*mask.shape, *[1] * (output.ndim - 2))
        real = mask.to(output.dtype).reshape(shape).expand(output.shape).flatten(1)
    count = flat.shape[1]
    if count <= PROBES:
        return flat, [real * row for row in torch.eye(count, dtype=flat.dtype, device=flat.device)]
    bits = torch.randint(0, 2, (PROBES, *flat.shape), generator=generator)
    signs = (2 * bits - 1).to(flat) / math.sqrt(PROBES)
    return flat, list(real * signs)


def _squared(
    names: Mapping[str, nn.Module],
    calls: Mapping[str, list[tuple[Tensor, Tensor]]],
    output: Tensor,
    signals: list[Tensor],
    size: int,
) -> dict[str, Tensor]:
    ran = [name for name in names if calls[name]]
    vectors = {name: _by_sample(name, names[name], calls[name], 0, size) for name in ran}
    totals = {name: torch.zeros(0) for name in ran}
    outputs = [out for name in ran for _, out in calls[name]]
    for place, signal in enumerate(signals):
        last = place + 1 == len(signals)
        grads = torch.autograd.grad(
            output, outputs, signal, retain_graph=not last, allow_unused=True
        )
        slopes = iter(grads)
        for name in ran:
            own = [
                (given, torch.zeros_like(out) if slope is None else slope)
                for (given, out), slope in zip(calls[name], slopes, strict=False)
            ]
            reaction = _by_sample(name, names[name], own, 1, size)
            square = _summed_squares(reaction, vectors[name])
            totals[name] = square if place == 0 else totals[name] + square
    return totals


def _by_sample(
    name: str, module: nn.Module, pairs: list[tuple[Tensor, Tensor]], side: int, size: int
) -> Tensor:
    """Inputs (side 0) or output gradients (1) as (samples, positions, groups, width), float64."""
    view = view_of(module)
    assert view is not None  # the caller selected modules that have one
    rows = []
    for pair in pairs:
        turned = (view.responses if side else view.vectors)(module, pair[side])
        if turned.shape[0] % size:
            raise ValueError(
                f"Layer {name!r} sees {turned.shape[0]} vectors for {size} samples, so squared "
                f"gradients of single samples cannot be told apart. Exclude the layer."
            )
        rows.append(turned.reshape(size, -1, *turned.shape[1:]).to(torch.float64))
    return torch.cat(rows, dim=1)


def _summed_squares(slopes: Tensor, vectors: Tensor) -> Tensor:
    """Σ over samples of (Σ over positions of slope · vector)², as (out, in)."""
    samples, positions, groups, out = slopes.shape
    width = vectors.shape[-1]
    if positions == 1:
        flat, inputs = slopes[:, 0].square(), vectors[:, 0].square()
        return torch.einsum("ngo,ngi->goi", flat, inputs).reshape(groups * out, width)
    total = slopes.new_zeros(groups, out, width)
    step = max(1, CHUNK_BYTES // (8 * groups * out * width))
    for start in range(0, samples, step):
        part = slice(start, start + step)
        one = slopes[part].permute(0, 2, 3, 1)
        other = vectors[part].permute(0, 2, 1, 3)
        total += (one @ other).square().sum(dim=0)
    return total.reshape(groups * out, width)
