"""Kernels of layers and of feature vectors, in closed form from Gram matrices.

The Gaussian kernel is L_ij = exp(−β‖a_i − a_j‖²) + ε·1[i = j], with ‖a_i − a_j‖² equal to
A_ii + A_jj − 2A_ij, so it needs nothing but the Gram matrix A of the items: for the edges of one
output with weights w, A = G ∘ wwᵀ; for the nodes of a layer, A = W G Wᵀ and what the bias adds.
G is the mean E[x xᵀ], so β is per mean squared distance: a bandwidth given for sums over N samples
is multiplied by N.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import positive, unknown
from prunus.dpp.arrays import float64

__all__ = [
    "KernelDiagnostics",
    "diagnose",
    "edge_gram",
    "edge_kernel",
    "gaussian_from_features",
    "gaussian_kernel",
    "kernel_entries",
    "linear_from_features",
    "linear_kernel",
    "median_bandwidth",
    "node_gram",
    "node_kernel",
]

_MEDIAN_ITEMS = 2048  # the median over more items is taken over this many, evenly spread
_ROWS = 64  # of a kernel formed at once, so that they stay in the cache
_NOTHING = -70.0  # exponents whose entries are zeros


@dataclass(frozen=True)
class KernelDiagnostics:
    """How much diversity a kernel with a constant diagonal can express.

    Attributes:
        offdiag_mean: mean off-diagonal entry.
        offdiag_max: largest off-diagonal entry.
        kinds: "diagonal", "close to rank one", or nothing.
        notes: what follows from that, in words; empty where nothing is wrong.
    """

    offdiag_mean: float
    offdiag_max: float
    kinds: tuple[str, ...]
    notes: tuple[str, ...]


def diagnose(kernel: Any) -> KernelDiagnostics:
    """Off-diagonal mean and maximum of a Gaussian kernel, and whether it is degenerate.

    A kernel whose off-diagonal entries stay below 1e-3 is diagonal in effect: its k-DPP is
    conditional Poisson sampling, and uniform if the diagonal is constant. One whose mean
    off-diagonal entry exceeds 0.9 is close to rank one.
    """
    matrix = float64("kernel", kernel, dims=2)
    n = len(matrix)
    if n < 2:
        return KernelDiagnostics(0.0, 0.0, (), ())
    mean = float((matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1)))
    # The maximum without a copy: both triangles, one row stride past the diagonal.
    off = matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1]
    top = float(off.max())
    kinds, notes = [], []
    if top < 1e-3:
        kinds.append("diagonal")
        notes.append(
            f"kernel is diagonal (largest off-diagonal entry {top:.2g}): the k-DPP is conditional "
            f"Poisson (uniform if the diagonal is constant); lower the bandwidth"
        )
    if mean > 0.9:
        kinds.append("close to rank one")
        notes.append(
            f"kernel is close to rank one (mean off-diagonal entry {mean:.3f}); raise the bandwidth"
        )
    return KernelDiagnostics(mean, top, tuple(kinds), tuple(notes))


def edge_gram(gram: Any, row: Any) -> Float[Tensor, "in in"]:
    """Gram of the edge items a_i = w_i x_i of one output: G_ij w_i w_j."""
    g, w = _square("gram", gram), float64("row", row, dims=1)
    if len(w) != len(g):
        raise ValueError(f"`row` must have the {len(g)} entries of `gram`, got {len(w)}.")
    return g * w[:, None] * w


def node_gram(
    gram: Any, weight: Any, *, mean: Any = None, bias: Any = None
) -> Float[Tensor, "out out"]:
    """Gram of the pre-activations z = W x + b of a layer's nodes: E[z zᵀ].

    W G Wᵀ, and with a bias u bᵀ + b uᵀ + b bᵀ more, u = W E[x].

    Args:
        gram: E[x xᵀ] of the layer's inputs.
        weight: W (out, in).
        mean: E[x], needed with `bias`.
        bias: b (out,), or None to leave it out as the literature does.
    """
    g, w = _square("gram", gram), float64("weight", weight, dims=2)
    if w.shape[1] != len(g):
        raise ValueError(f"`weight` must have {len(g)} columns, as `gram`, got {w.shape[1]}.")
    nodes = w @ g @ w.T
    if bias is not None:
        if mean is None:
            raise ValueError(
                "A bias needs `mean`, got None. Calibrate the mean, or pass bias=None."
            )
        b, u = float64("bias", bias, dims=1), w @ float64("mean", mean, dims=1)
        cross = torch.outer(u, b)
        nodes = nodes + cross + cross.T + torch.outer(b, b)
    return (nodes + nodes.T) / 2


def median_bandwidth(gram: Any) -> float:
    """β = 1 / median of ‖a_i − a_j‖² over i < j.

    Over 2048 evenly spread items where there are more. Where more than half of the distances
    vanish (dead inputs, zero weights), the mean takes the median's place; where all vanish every
    bandwidth gives the same kernel, and 1 is returned.
    """
    a = _square("gram", gram).cpu().numpy()
    step = -(-len(a) // _MEDIAN_ITEMS)
    a = a[::step, ::step]
    return _median_bandwidth(a, np.ones(len(a)))


def _median_bandwidth(gram: np.ndarray, row: np.ndarray) -> float:
    n = len(gram)
    if n < 2:
        return 1.0
    power = gram.diagonal() * row * row
    upper = np.triu_indices(n, 1)
    scaled = gram * (2 * row)
    scaled *= row[:, None]
    np.subtract(power + power[:, None], scaled, out=scaled)
    squared = np.maximum(scaled[upper], 0.0)
    centre = float(np.median(squared))
    if centre <= 0:
        centre = float(squared.mean())
    return 1.0 / centre if centre > 0 else 1.0


def gaussian_kernel(
    gram: Any, *, bandwidth: float | str = "median", jitter: float = 0.01
) -> Float[Tensor, "n n"]:
    """exp(−β(A_ii + A_jj − 2A_ij)) + ε I from the Gram matrix A of n items; diagonal exactly 1 + ε.

    Args:
        gram: A (n, n).
        bandwidth: β > 0, or "median" for `median_bandwidth(gram)`.
        jitter: ε ≥ 0.

    Raises:
        ValueError: a bandwidth that is not positive, a negative jitter, a `gram` that is not a
            finite square matrix.
    """
    a = _square("gram", gram)
    return _gaussian(a, torch.ones(len(a), dtype=torch.float64), bandwidth, jitter)


def edge_kernel(
    gram: Any, row: Any, *, bandwidth: float | str = "median", jitter: float = 0.01
) -> Float[Tensor, "in in"]:
    """Gaussian kernel of the incoming edges of one output: `gaussian_kernel(edge_gram(G, w))`.

    Formed in one n × n buffer: O(n²), 1 to 2 ms at n = 784.

    Args:
        gram: G (in, in), the mean E[x xᵀ].
        row: the output's weights w (in,).
        bandwidth: β per mean squared distance, or "median".
        jitter: ε.

    References:
        Acharyya et al. (2021), Statistical mechanical analysis of neural network pruning.
    """
    g, w = _square("gram", gram), float64("row", row, dims=1)
    if len(w) != len(g):
        raise ValueError(f"`row` must have the {len(g)} entries of `gram`, got {len(w)}.")
    return _gaussian(g, w, bandwidth, jitter)


def node_kernel(
    gram: Any,
    weight: Any,
    *,
    mean: Any = None,
    bias: Any = None,
    bandwidth: float | str = "median",
    jitter: float = 0.01,
) -> Float[Tensor, "out out"]:
    """Gaussian kernel of a layer's nodes by their pre-activations; see `node_gram`.

    References:
        Mariet and Sra (2016), Diversity networks (DIVNET).
    """
    nodes = node_gram(gram, weight, mean=mean, bias=bias)
    return gaussian_kernel(nodes, bandwidth=bandwidth, jitter=jitter)


def linear_kernel(gram: Any, *, jitter: float = 0.0) -> Float[Tensor, "n n"]:
    """A + ε I from the Gram matrix A of n items."""
    a = _square("gram", gram).clone()
    a.diagonal().add_(positive("jitter", jitter, zero=True))
    return a


def gaussian_from_features(
    features: Any, *, bandwidth: float | str = "median", jitter: float = 0.01
) -> Float[Tensor, "n n"]:
    """Gaussian kernel of n feature vectors (n, dimensions); ‖a_i − a_j‖² is their squared distance.

    The features are centred first, which changes no distance and spares digits.
    """
    b = float64("features", features, dims=2)
    b = b - b.mean(0)
    return gaussian_kernel(b @ b.T, bandwidth=bandwidth, jitter=jitter)


def linear_from_features(features: Any, *, jitter: float = 0.0) -> Float[Tensor, "n n"]:
    """B Bᵀ + ε I of n feature vectors B (n, dimensions)."""
    b = float64("features", features, dims=2)
    return linear_kernel(b @ b.T, jitter=jitter)


def _gaussian(
    gram: Tensor, row: Tensor, bandwidth: float | str, jitter: float
) -> Float[Tensor, "n n"]:
    """The kernel of the items with Gram G ∘ wwᵀ, formed block by block in one buffer.

    Entries below e⁻⁷⁰ are zeros: beside a diagonal of 1 they are far below rounding, and their
    products would be subnormal numbers, on which an eigendecomposition takes twice as long.
    """
    epsilon = positive("jitter", jitter, zero=True)
    beta = _beta(bandwidth, gram.cpu().numpy(), row.cpu().numpy())
    if gram.is_cuda:
        scaled = (2 * beta) ** 0.5 * row.to(gram.device)
        power = 0.5 * scaled.square() * gram.diagonal()
        kernel = torch.outer(scaled, scaled).mul_(gram).sub_(power + power[:, None])
        kernel.clamp_(max=0.0).masked_fill_(kernel < _NOTHING, -math.inf).exp_()
    else:
        kernel = torch.from_numpy(_gaussian_blocks(gram.numpy(), row.numpy(), beta))
    return kernel.fill_diagonal_(1.0 + epsilon)


def _gaussian_blocks(gram: np.ndarray, row: np.ndarray, beta: float) -> np.ndarray:
    scaled = np.sqrt(2 * beta) * row
    power = 0.5 * scaled * scaled * gram.diagonal()
    kernel = np.empty(gram.shape)
    pairs = np.empty((min(_ROWS, len(gram)), len(gram)))
    for start in range(0, len(gram), _ROWS):
        part = slice(start, start + _ROWS)
        block, both = kernel[part], pairs[: len(row[part])]
        np.multiply.outer(scaled[part], scaled, out=block)
        block *= gram[part]
        block -= np.add.outer(power[part], power, out=both)
        np.minimum(block, 0.0, out=block)
        np.putmask(block, block < _NOTHING, -np.inf)
        np.exp(block, out=block)
    return kernel


def kernel_entries(
    gram: Any, row: Any, *, bandwidth: float | str | None = "median", jitter: float = 0.01
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function (rows, columns) -> that block of `edge_kernel(gram, row)`, which is never formed.

    The diagonal of the Gaussian kernel is exactly 1 + ε.

    Args:
        gram: G (n, n).
        row: w (n,).
        bandwidth: β, "median", or None for the linear kernel G_ij w_i w_j.
        jitter: ε.
    """
    g, w = _square("gram", gram).cpu().numpy(), float64("row", row, dims=1).cpu().numpy()
    epsilon = positive("jitter", jitter, zero=True)
    beta = None if bandwidth is None else _beta(bandwidth, g, w)
    power = w * w * g.diagonal()

    def entries(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        block: np.ndarray = g[np.ix_(rows, columns)] * w[rows, None] * w[columns]
        if beta is not None:
            distance = power[rows, None] + power[columns] - 2 * block
            block = np.exp(-beta * np.maximum(distance, 0.0))
            block[rows[:, None] == columns] = 1.0 + epsilon  # never by the formula
        else:
            block[rows[:, None] == columns] += epsilon
        return block

    return entries


def _beta(bandwidth: float | str, gram: np.ndarray, row: np.ndarray) -> float:
    if not isinstance(bandwidth, str):
        return positive("bandwidth", bandwidth)
    if bandwidth != "median":
        raise unknown("bandwidth", bandwidth, ["median"])
    step = -(-len(gram) // _MEDIAN_ITEMS)
    return _median_bandwidth(gram[::step, ::step], row[::step])


def _square(name: str, values: Any) -> Tensor:
    matrix = float64(name, values, dims=2)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`{name}` must be square, got shape {tuple(matrix.shape)}.")
    return matrix
