"""What is sent back through a network from its outputs, so that squares add up to what is asked."""

import math

import torch
from torch import Generator, Tensor

from prunus.calibration.padding import Padding
from prunus.hints import Batch

__all__ = ["PROBES", "output_signals", "softmax_signals"]

PROBES = 64  # outputs beyond which random signs replace one backward pass per output


def output_signals(
    output: Tensor, batch: Batch, generator: Generator, padding: Padding | None = None
) -> list[Tensor]:
    """Signals r of the output's shape with Σ r rᵀ = 1 on every sample's outputs.

    One unit vector per output, or 64 random sign vectors where there are more than 64 outputs (it
    holds then in the mean); outputs at padding weigh nothing.
    """
    flat = output.flatten(1) if output.ndim > 1 else output[:, None]
    real = _real(output, padding).to(flat).reshape(flat.shape)
    count = flat.shape[1]
    if count <= PROBES:
        rows = torch.eye(count, dtype=flat.dtype, device=flat.device)
        return [(real * row).reshape(output.shape) for row in rows]
    return [s.reshape(output.shape) for s in real * _signs(flat, generator)]


def softmax_signals(
    output: Tensor, batch: Batch, generator: Generator, padding: Padding | None = None
) -> list[Tensor]:
    """Signals s with Σ s sᵀ = diag(p) − p pᵀ, p the softmax: the Hessian of cross-entropy.

    One per class, √p_c (e_c − p), where there are at most 64 (positions counted); else 64 times
    √p∘r − p Σ_c √p_c r_c with random signs r, drawn anew for every position, so that the softmaxes
    of different positions do not mix. Positions of padding, and those whose label is −100 in a
    pair (x, y), weigh nothing. Classes lie on the last axis; on axis 1 where labels of a pair say
    so, as `torch.nn.functional.cross_entropy` reads them.
    """
    logits = output[:, None] if output.ndim == 1 else output
    labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    after = (logits.shape[0], *logits.shape[2:])
    first = isinstance(labels, Tensor) and tuple(labels.shape) == after
    axis = 1 if first else logits.ndim - 1
    # (samples, positions, classes)
    moved = logits.detach().movedim(axis, -1)
    rows = moved.reshape(len(moved), -1, moved.shape[-1]).to(torch.float64)
    p = rows.softmax(-1)
    root = p.sqrt()
    real = _real(output, padding).reshape(logits.shape).movedim(axis, -1)
    weight = real.reshape(rows.shape)[..., :1].to(rows)
    if first and labels is not None and not labels.is_floating_point():
        weight = weight * (labels.reshape(len(rows), -1, 1) != -100).to(rows)

    def back(signal: Tensor) -> Tensor:
        whole = (signal * weight).reshape(moved.shape).movedim(-1, axis)
        return whole.reshape(output.shape).to(output.dtype)

    positions, classes = rows.shape[1:]
    found = []
    if positions * classes <= PROBES:
        for place in range(positions):
            for c in range(classes):
                signal = torch.zeros_like(rows)
                signal[:, place] = -root[:, place, c : c + 1] * p[:, place]
                signal[:, place, c] += root[:, place, c]
                found.append(back(signal))
        return found
    for signs in _signs(rows, generator):
        mixed = (root * signs).sum(-1, keepdim=True)
        found.append(back(root * signs - p * mixed))
    return found


def _signs(like: Tensor, generator: Generator) -> Tensor:
    """64 random sign tensors over √64."""
    bits = torch.randint(0, 2, (PROBES, *like.shape), generator=generator)
    return (2 * bits - 1).to(like) / math.sqrt(PROBES)


def _real(output: Tensor, padding: Padding | None) -> Tensor:
    """True where an output belongs to no padding."""
    mask = None if padding is None else padding.of_output(output)
    if mask is None:
        return torch.ones(output.shape, dtype=torch.bool, device=output.device)
    return mask.reshape(*mask.shape, *[1] * (output.ndim - 2)).expand(output.shape)
