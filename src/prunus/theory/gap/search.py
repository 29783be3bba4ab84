"""How large the gap really gets: gradient ascent inside the ball, a lower bound of the sup."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from prunus.theory.gap.stages import Stage, run

__all__ = ["ascend", "largest_gap"]


def largest_gap(
    stages: Sequence[Stage],
    radius: float,
    centre: Float[Tensor, "1 ..."],
    *,
    starts: int = 8,
    steps: int = 100,
    generator: Generator,
    samples: Tensor | None = None,
) -> float:
    """The largest ‖F(x) − f(x)‖ found over ‖x − centre‖ ≤ radius by projected gradient ascent.

    Every point visited counts, so the value never exceeds the true sup.

    Args:
        stages: the two networks.
        radius: of the ball.
        centre: of the ball.
        starts: random directions on the sphere to start from.
        steps: of the ascent; 0 measures at the starts alone.
        generator: for the starts.
        samples: further starts: those of them with the largest gaps.
    """
    gaps, _ = ascend(
        stages, radius, centre, starts=starts, steps=steps, generator=generator, samples=samples
    )
    return float(gaps.max())


def ascend(
    stages: Sequence[Stage],
    radius: float,
    centre: Float[Tensor, "1 ..."],
    *,
    starts: int = 8,
    steps: int = 100,
    generator: Generator,
    samples: Tensor | None = None,
) -> tuple[Float[Tensor, " points"], Float[Tensor, "points ..."]]:
    """As `largest_gap`: the largest gap found from every start, and the input that has it."""
    shape = centre.shape[1:]
    directions = torch.randn(starts, *shape, dtype=torch.float64, generator=generator)
    points = radius * _unit(directions)
    if samples is not None and len(samples):
        inside = _project(samples - centre, radius)
        gaps = _gaps(stages, inside + centre)
        points = torch.cat([points, inside[gaps.topk(min(4, len(gaps))).indices]])
    best, found = torch.zeros(len(points), dtype=torch.float64), points
    for step in range(steps + 1):
        points = points.detach().requires_grad_(step < steps)
        gaps = _gaps(stages, points + centre)
        better = (gaps > best).detach().reshape(-1, *[1] * len(shape))
        found = torch.where(better, points.detach(), found)
        best = torch.maximum(best, gaps.detach())
        if step == steps:
            break
        (slope,) = torch.autograd.grad(gaps.sum(), points)
        rate = radius * (1.0 if step < steps // 2 else 0.3 * 0.1 ** (2 * step / steps - 1))
        points = _project(points.detach() + rate * _unit(slope), radius)
    return best, found + centre


def _gaps(stages: Sequence[Stage], x: Tensor) -> Tensor:
    difference = run(stages, x) - run(stages, x, pruned=True)
    gaps: Tensor = difference.flatten(1).norm(dim=1)
    return gaps


def _unit(x: Tensor) -> Tensor:
    lengths = x.flatten(1).norm(dim=1).clamp_min(1e-300)
    return torch.div(x, lengths.reshape(-1, *[1] * (x.ndim - 1)))


def _project(x: Tensor, radius: float) -> Tensor:
    lengths = x.flatten(1).norm(dim=1)
    factor = torch.where(lengths > radius, radius / lengths.clamp_min(1e-300), 1.0)
    factor = factor * (1 - 4 * math.ulp(1.0))
    return x * factor.reshape(-1, *[1] * (x.ndim - 1))
