"""Exact k-DPP draws from many kernels at once, for accelerators."""

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor

from prunus.check import as_float64, whole
from prunus.dpp.arrays import precision
from prunus.rng import Draws, as_generator

__all__ = ["bytes_per_kernel", "sample_batch"]


_EPS = torch.finfo(torch.float64).eps


def bytes_per_kernel(n: int, k: int) -> int:
    """Memory that one kernel of a batch takes: the kernel, its eigenvectors, and m columns."""
    return 8 * (3 * n * n + min(k, n - k) * n)


def sample_batch(
    kernels: Shaped[Tensor, "batch n n"], k: int, *, generator: Draws = None
) -> Int[Tensor, "batch k"]:
    """One exact draw of size k from each kernel, ascending, on the kernels' device.

    The law of `KDPP(kernel).sample(k)`; every step runs over the whole batch, which pays on an
    accelerator and costs about twice the time on a CPU. The randomness is drawn on the CPU, so a
    seed gives the same uniforms on every device.

    Args:
        kernels: symmetric positive semi-definite kernels.
        k: size of the sets.
        generator: a `torch.Generator` on the CPU, a seed, or None for torch's own.

    Raises:
        TypeError: complex kernels.
        ValueError: NaN, a kernel that is not square, symmetric to 1e-8 and positive semi-definite
            to 1e-8 (or to the precision they come in, as `KDPP`), or k beyond a kernel's rank.
    """
    source = as_generator(generator)
    unit = precision(kernels)
    kernels = _checked(kernels)
    batch, n, _ = kernels.shape
    k = whole("k", k, low=0, high=n)
    device = kernels.device
    if k in (0, n):
        return torch.arange(k, device=device).expand(batch, k).clone()
    values, vectors = torch.linalg.eigh(kernels)
    top = values[:, -1:]
    peak = kernels.abs().amax((1, 2))[:, None]
    lost = 8 * math.sqrt(n) * unit * peak if unit > _EPS else torch.zeros_like(top)
    if bool((values[:, :1] < -torch.maximum(1e-8 * top, lost)).any()):
        raise ValueError(
            f"A kernel of the batch is not positive semi-definite: eigenvalue "
            f"{float(values.min()):.3g}. Build it in float64 from a Gram matrix."
        )
    good = values > torch.maximum(n * _EPS * top, lost)
    ranks = good.sum(1)
    if bool((ranks < k).any()):
        raise ValueError(
            f"k={k} exceeds numerical rank {int(ranks.min())} of a kernel of the batch. Lower k, "
            f"or add a positive jitter eps to the diagonals."
        )
    logs = torch.where(good, values, 1.0).log().masked_fill(~good, -torch.inf)
    chosen = _draw_columns(logs, ranks, k, source)
    complement = 2 * k > n
    if complement:
        chosen = ~chosen
    m = n - k if complement else k
    columns = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :m]
    basis = vectors.gather(2, columns[:, None, :].expand(batch, n, m))
    drawn = _draw_items(basis, source)
    inside = torch.zeros(batch, n, dtype=torch.bool, device=device).scatter_(1, drawn, True)
    if complement:
        inside = ~inside
    return inside.nonzero()[:, 1].view(batch, k)


def _checked(kernels: Tensor) -> Float[Tensor, "batch n n"]:
    """Finite, square, symmetric float64 kernels: what `check_kernel` asks of one."""
    stack = as_float64("kernels", kernels, dims=3)
    if stack.shape[1] != stack.shape[2]:
        raise ValueError(f"`kernels` must be square, got shape {tuple(stack.shape)}.")
    if stack.numel() == 0:
        return stack
    skew = (stack - stack.mT).abs().amax((1, 2))
    allowed = max(1e-8, 16 * precision(kernels)) * stack.abs().amax((1, 2))
    worst = int((skew - allowed).argmax())
    if float(skew[worst]) > float(allowed[worst]):
        raise ValueError(
            f"`kernels` must be symmetric, got entries of kernel {worst} that differ from their "
            f"mirror image by {float(skew[worst]):.3g}. Average both if that is what you mean."
        )
    return (stack + stack.mT) / 2


def _draw_columns(logs: Tensor, ranks: Tensor, k: int, generator: Generator) -> Tensor:
    """Bool[batch, n]: k eigenvectors of each kernel, P ∝ ∏ λ, by tilted flips and rejection."""
    p = _tilted(logs, k)
    certain = ranks == k  # every positive eigenvector; no flips
    p = torch.where(certain[:, None], (logs > -torch.inf).to(p.dtype), p)
    chosen = p > 2  # nothing yet
    todo = torch.arange(len(p), device=p.device)
    while len(todo):
        spread = float((p[todo] * (1 - p[todo])).sum(1).max())
        tries = max(4, math.ceil(3 * math.sqrt(spread)))
        uniform = torch.rand(
            len(todo), tries, p.shape[1], dtype=torch.float64, generator=generator
        ).to(p.device)
        heads = uniform < p[todo, None]
        hit = heads.sum(2) == k
        first = hit.to(torch.uint8).argmax(1)
        done = hit.any(1)
        chosen[todo[done]] = heads[done, first[done]]
        todo = todo[~done]
    return chosen


def _tilted(logs: Tensor, k: int) -> Tensor:
    """Flip probabilities of expected sum k for each row, by bisection kept inside a bracket."""
    finite_logs = logs.masked_fill(logs == -torch.inf, torch.inf)
    low, high = -logs.max(1).values - 60.0, -finite_logs.min(1).values + 60.0
    for _ in range(80):
        x = (low + high) / 2
        below = torch.sigmoid(logs + x[:, None]).sum(1) < k
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return torch.sigmoid(logs + ((low + high) / 2)[:, None])


def _draw_items(basis: Tensor, generator: Generator) -> Tensor:
    """Int[batch, m]: the projection DPP of each basis by Cholesky with random pivots."""
    batch, n, m = basis.shape
    rows = torch.arange(batch, device=basis.device)
    uniform = torch.rand(m, batch, 1, dtype=torch.float64, generator=generator).to(basis.device)
    d = basis.square().sum(2)
    columns = basis.new_empty(batch, m, n)
    drawn = torch.empty(batch, m, dtype=torch.int64, device=basis.device)
    for t in range(m):
        total = d.cumsum(1)
        mass = total[:, -1:]
        if bool(((mass[:, 0] - (m - t)).abs() > 1e-6 * m).any()):
            raise ArithmeticError(
                f"The residual of a projection of rank {m} must weigh {m - t} after {t} steps. "
                f"The eigenvectors are not orthonormal."
            )
        p = torch.searchsorted(total, uniform[t] * mass, right=True)[:, 0]
        last = n - 1 - (d > 0).flip(1).to(torch.uint8).argmax(1)
        p = torch.minimum(p, last)
        c = (basis @ basis[rows, p, :, None])[..., 0]
        if t:
            c = c - (columns[rows, :t, p][:, None] @ columns[:, :t])[:, 0]
        c = c / d[rows, p].sqrt()[:, None]
        columns[:, t] = c
        d = (d - c.square()).clamp_min(0)
        d[rows, p] = 0.0
        drawn[:, t] = p
    return drawn
