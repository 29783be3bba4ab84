"""Draw networks and masks from their laws: what the a-priori statements are measured against."""

import math

import torch
from torch import Generator, Tensor

from prunus.check import whole
from prunus.theory.gap.laws import Law, Method
from prunus.theory.gap.network import Network, pruned_count
from prunus.theory.gap.search import largest_gap
from prunus.theory.gap.stages import LinearPair, Pointwise, Stage, run

__all__ = ["draw_matrix", "draw_network", "draw_pruned", "simulated_gaps", "simulated_sups"]


def draw_matrix(law: Law, rows: int, columns: int, *, generator: Generator) -> Tensor:
    """A matrix of iid weights of this law."""
    if law.kind == "uniform":
        unit = torch.rand(rows, columns, dtype=torch.float64, generator=generator)
        return law.bound * (2 * unit - 1)
    if law.parent is None:
        raise ValueError("a law known by moments only cannot be drawn from.")
    if law.kind == "normal":
        return law.parent * torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    inside = math.erf(law.bound / law.parent / math.sqrt(2))
    unit = torch.rand(rows, columns, dtype=torch.float64, generator=generator)
    return law.parent * math.sqrt(2) * torch.erfinv(inside * (2 * unit - 1))


def draw_pruned(
    weight: Tensor, density: float, method: Method, *, generator: Generator, kept: int | None = None
) -> Tensor:
    """V of one layer: Bernoulli masks for the random methods, exactly `kept` for magnitude."""
    if method == "magnitude":
        count = round(density * weight.numel()) if kept is None else kept
        order = weight.abs().flatten().argsort(descending=True, stable=True)
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[order[:count]] = True
        return torch.where(mask.reshape(weight.shape), weight, 0.0)
    mask = torch.rand(weight.shape, dtype=torch.float64, generator=generator) < density
    pruned = torch.where(mask, weight, 0.0)
    return pruned / density if method == "random_rescaled" else pruned


def draw_network(network: Network, *, generator: Generator) -> tuple[Stage, ...]:
    """One network of matrices and its pruned form, drawn from the laws."""
    stages: list[Stage] = []
    for i, (shape, law) in enumerate(zip(network.shapes, network.laws, strict=True)):
        if shape.grid is not None:
            raise ValueError("only networks of matrices are drawn here.")
        weight = draw_matrix(law, shape.outputs, shape.inputs, generator=generator)
        kept = shape.total - pruned_count(shape, network.densities[i])
        pruned = draw_pruned(
            weight, network.densities[i], network.method, generator=generator, kept=kept
        )
        stages.append(LinearPair(name=f"layer {i}", weight=weight, pruned_weight=pruned))
        if i < len(network.activations):
            stages.append(Pointwise(name=f"after {i}", activation=network.activations[i]))
    return tuple(stages)


def simulated_gaps(
    network: Network, draws: int, *, norm: float = 1.0, inputs: int = 1, generator: Generator
) -> Tensor:
    """‖F(x) − f(x)‖ for freshly drawn networks, masks and directions of x, (draws × inputs,)."""
    gaps = []
    for _ in range(whole("draws", draws, low=1)):
        stages = draw_network(network, generator=generator)
        x = torch.randn(inputs, network.shapes[0].inputs, dtype=torch.float64, generator=generator)
        x = norm * x / x.norm(dim=1, keepdim=True)
        gaps.append((run(stages, x) - run(stages, x, pruned=True)).norm(dim=1))
    return torch.cat(gaps)


def simulated_sups(
    network: Network,
    draws: int,
    *,
    radius: float = 1.0,
    starts: int = 6,
    steps: int = 100,
    generator: Generator,
) -> Tensor:
    """The largest gap gradient ascent finds in the ball, for freshly drawn networks."""
    origin = torch.zeros(1, network.shapes[0].inputs, dtype=torch.float64)
    return torch.tensor(
        [
            largest_gap(
                draw_network(network, generator=generator),
                radius,
                origin,
                starts=starts,
                steps=steps,
                generator=generator,
            )
            for _ in range(whole("draws", draws, low=1))
        ],
        dtype=torch.float64,
    )
