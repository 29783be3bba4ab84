"""Sums of squares in double precision, without a copy of the numbers in double precision."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["square_sum"]

PIECE = {"cpu": 2**16}  # numbers squared at once: in double precision they stay in the cache
ELSEWHERE = 2**24
LONG = 64  # numbers with one shift from which on it is taken off row by row


def square_sum(
    values: Shaped[Tensor, "*shape"], shift: Float[Tensor, " some"] | None = None, axis: int = -1
) -> float:
    """Σ (v − s)² in float64; `shift` s has an entry for each place along `axis`."""
    if not values.numel():
        return 0.0
    rows, less = _rows(values, shift, axis)
    step = max(1, PIECE.get(values.device.type, ELSEWHERE) // rows.shape[1])
    room = torch.empty(
        min(step, len(rows)) * rows.shape[1], dtype=torch.float64, device=values.device
    )
    found = torch.zeros((), dtype=torch.float64, device=values.device)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        wide = room[: part.numel()]
        if less is None:
            wide.view(part.shape).copy_(part)
        else:
            own = less if len(less) == 1 else less[start : start + step]
            torch.sub(part, own, out=wide.view(part.shape))
        found += torch.dot(wide, wide)
    return float(found)


def _rows(values: Tensor, shift: Tensor | None, axis: int) -> tuple[Tensor, Tensor | None]:
    """The numbers as a matrix, and what is taken off its rows: a number each, or one row of all."""
    values = values.detach()
    if shift is None:
        flat = values.reshape(-1)
        length = math.gcd(len(flat), 2**10)  # rows of any length do
        return flat.view(-1, length), None
    axis %= values.ndim
    outer, inner = math.prod(values.shape[:axis]), math.prod(values.shape[axis + 1 :])
    shift = shift.detach().to(values.device, torch.float64)
    if inner >= LONG:
        return values.reshape(-1, inner), shift.repeat(outer)[:, None]
    return values.reshape(outer, -1), shift.repeat_interleave(inner)[None]
