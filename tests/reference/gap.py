"""Slow references for the gap theory, written from the definitions."""

import itertools
import math

import numpy as np
import torch


def walk_count(order: int) -> dict[tuple[int, int], int]:
    """W_p(a, b) by enumeration: closed bipartite walks of length 2p from a left vertex.

    Vertices are named in order of discovery; a walk counts with ∏ (k_e − 1)!! over its edges if
    every edge is used an even number of times.
    """
    counts: dict[tuple[int, int], int] = {}

    def step(position: int, lefts: int, rights: int, at: int, edges: dict) -> None:
        if position == 2 * order:
            if at != 0 or any(k % 2 for k in edges.values()):
                return
            weight = math.prod(math.prod(range(1, k, 2)) for k in edges.values())
            counts[lefts, rights] = counts.get((lefts, rights), 0) + weight
            return
        to_right = position % 2 == 0
        known = rights if to_right else lefts
        for target in range(known + 1):
            edge = (at, target) if to_right else (target, at)
            edges[edge] = edges.get(edge, 0) + 1
            grown = target == known
            step(
                position + 1,
                lefts + (grown and not to_right),
                rights + (grown and to_right),
                target,
                edges,
            )
            edges[edge] -= 1

    step(0, 1, 0, 0, {})
    return counts


def conv_matrix(kernel: torch.Tensor, size: int, stride: int, padding: int, groups: int = 1):
    """The matrix of a zero-padded convolution, one unit image at a time."""
    channels = kernel.shape[1] * groups
    units = torch.eye(channels * size * size, dtype=torch.float64)
    images = units.reshape(-1, channels, size, size)
    out = torch.nn.functional.conv2d(images, kernel, stride=stride, padding=padding, groups=groups)
    return out.flatten(1).T


def circular_matrix(kernel: torch.Tensor, size: int, stride: int = 1):
    """The matrix of a circular convolution from its definition, output (o, i, j)."""
    outs, ins, high, wide = kernel.shape
    steps = range(0, size, stride)
    rows = []
    for o, i, j in itertools.product(range(outs), steps, steps):
        row = torch.zeros(ins, size, size, dtype=torch.float64)
        for c, a, b in itertools.product(range(ins), range(high), range(wide)):
            row[c, (i + a) % size, (j + b) % size] += kernel[o, c, a, b]
        rows.append(row.flatten())
    return torch.stack(rows)


def mean_square_gap(
    widths, densities, std, *, rescaled: bool, relu: bool, draws: int, generator
) -> float:
    """E ‖F(x) − f(x)‖² over Gaussian weights and Bernoulli masks at a unit input, by simulation."""
    total = 0.0
    for _ in range(draws):
        h = torch.zeros(widths[0], dtype=torch.float64)
        h[0] = 1.0
        g = h
        for i, (n, m) in enumerate(itertools.pairwise(widths)):
            weight = std[i] * torch.randn(m, n, dtype=torch.float64, generator=generator)
            mask = torch.rand(m, n, dtype=torch.float64, generator=generator) < densities[i]
            pruned = weight * mask / (densities[i] if rescaled else 1.0)
            h, g = weight @ h, pruned @ g
            if i + 2 < len(widths):
                h, g = (h.relu(), g.relu()) if relu else (h.tanh(), g.tanh())
        total += float((h - g).square().sum())
    return total / draws


def best_plan(costs, errors, budget: float) -> float:
    """Fewest kept weights with Σ error ≤ budget, by trying every combination."""
    best = math.inf
    for choice in itertools.product(*(range(len(c)) for c in costs)):
        error = sum(e[g] for e, g in zip(errors, choice, strict=True))
        if error <= budget:
            best = min(best, sum(c[g] for c, g in zip(costs, choice, strict=True)))
    return best


def energy_of_smallest(sample, count: int, draws: int, size: int, rng: np.random.Generator):
    """Share of Σ w² in the `count` smallest of `size` draws, by simulation."""
    shares = []
    for _ in range(draws):
        squares = np.sort(sample(rng, size) ** 2)
        shares.append(squares[:count].sum() / size)
    return float(np.mean(shares)), float(np.std(shares) / math.sqrt(draws))
