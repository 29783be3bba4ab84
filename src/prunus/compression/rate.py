"""Values by rate and distortion: how many there are, and which weights become zero, from one λ."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.calibration import calibrate
from prunus.check import positive, whole
from prunus.compression.books import Shared, share, stored_book
from prunus.progress import progress_bar
from prunus.weights import weights_of

__all__ = ["RateDistortion", "quantised", "searched"]

ROUNDS = 40
BLOCK = 1 << 16  # weights whose costs to all centroids are held at once
DAMPING = 1e-3  # of the mean curvature is added to each
STEPS = 12  # of the bisection
WIDEST = 40  # factors of two in which λ is looked for


@dataclass(frozen=True, eq=False, kw_only=True)
class RateDistortion:
    """Values chosen by what they cost in bits and in loss, under one λ for the whole network.

    Minimises Σ ½ D (w − c)² + λ · bits over the values c of every layer, the value of every weight
    and whether it becomes zero; bits are those of the entropy coder for the shares that come out.
    λ is the largest whose network, measured, has a loss within `tolerance`: found by bisection.
    The quadratic form only ranks: it has been seen to promise what the network does not keep.

    Attributes:
        loss: measured on samples held out from training and test: model -> loss.
        tolerance: by how much it may exceed that of the pruned network, before fine-tuning.
        data: batches (inputs, labels) from which the curvature D is taken; D = 1 where None.
        k: values of a layer to begin with.

    References:
        Choi et al. (2017), Towards the limit of network quantization, sections 3 and 4;
        Chou et al. (1989), Entropy-constrained vector quantization.
    """

    loss: Callable[[nn.Module], float]
    tolerance: float
    data: Any = field(default=None, repr=False)
    k: int = 32

    def __post_init__(self) -> None:
        positive("tolerance", self.tolerance, zero=True)
        whole("k", self.k, low=1, high=4096)


def quantised(
    weight: np.ndarray, curvature: np.ndarray, lam: float, k: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids and the place of every weight among them, −1 where it becomes zero.

    Args:
        weight: the kept weights, float64.
        curvature: D of each, >= 0.
        lam: λ, loss per bit.
        k: centroids at first, equally spaced.
        size: entries of the layer, zeros included.
    """
    cost = curvature + DAMPING * curvature.mean() if curvature.any() else np.ones_like(curvature)
    centroids = np.linspace(weight.min(), weight.max(), k)
    shares = np.full(k, 1 / k)
    density = min(len(weight) / size, 1 - 0.5 / size)
    codes = np.full(len(weight), -2)
    for _ in range(ROUNDS):
        bits = np.log2(1 / shares) - math.log2(density)
        found = _cheapest(weight, cost, centroids, lam * bits, -lam * math.log2(1 - density))
        if np.array_equal(found, codes):
            break
        codes = found
        kept = codes >= 0
        if not kept.any():
            break
        total = np.bincount(codes[kept], weights=cost[kept], minlength=len(centroids))
        sums = np.bincount(codes[kept], weights=(cost * weight)[kept], minlength=len(centroids))
        counts = np.bincount(codes[kept], minlength=len(centroids))
        used = counts > 0
        centroids = sums[used] / total[used]
        codes = np.where(kept, np.cumsum(used)[codes] - 1, -1)
        shares = counts[used] / counts.sum()
        density = min(counts.sum() / size, 1 - 0.5 / size)
    return centroids, codes


def searched(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    how: RateDistortion,
    *,
    progress: bool | None = None,
) -> tuple[dict[str, Shared], float]:
    """The shared values of every weight in `masks` at the largest λ that the measured loss allows.

    Args:
        model: the pruned network; it stays as it is.
        masks: of its weights.
        how: the loss, what it may rise by, and the curvature's data.
        progress: as in `progress_bar`.

    Returns:
        The values by parameter, and λ; 0 where even the smallest tried exceeds the tolerance, and
        then the values are k-means' for k.

    Raises:
        ValueError: the loss of the pruned network is not finite.
    """
    curvature = _curvature(model, masks, how.data, progress)
    parameters = dict(model.named_parameters())
    start = how.loss(model)
    if not math.isfinite(start):
        raise ValueError(f"The held-out loss of the pruned network is {start}. Mend `loss`.")
    moments = [
        (curvature[n] * parameters[n].detach().double().cpu().square())[masks[n].cpu()] / 2
        for n in masks
    ]
    everything = torch.cat(moments)
    unit = float(everything.mean()) if len(everything) else 0.0
    trial = copy.deepcopy(model)
    places = dict(trial.named_parameters())

    def at(exponent: float) -> tuple[dict[str, Shared], float]:
        found = {
            name: _shared(parameters[name], mask, curvature[name], unit * 2**exponent, how.k)
            for name, mask in masks.items()
        }
        with torch.no_grad():
            for name, own in found.items():
                places[name].copy_(own.weight(places[name].dtype))
        return found, how.loss(trial)

    low, high = -float(WIDEST), 0.0
    best: dict[str, Shared] | None = None
    with progress_bar("rate and distortion", STEPS, progress=progress) as advance:
        for _ in range(STEPS):
            middle = (low + high) / 2
            found, loss = at(middle)
            if loss <= start + how.tolerance:  # a loss that is no number does not pass
                low, best = middle, found
            else:
                high = middle
            advance(1)
    if best is None:
        return {n: share(m, parameters[n], how.k) for n, m in masks.items()}, 0.0
    return best, unit * 2**low


def _cheapest(
    weight: np.ndarray, cost: np.ndarray, centroids: np.ndarray, rates: np.ndarray, zero: float
) -> np.ndarray:
    found = np.empty(len(weight), dtype=np.int64)
    for begin in range(0, len(weight), BLOCK):
        w, d = weight[begin : begin + BLOCK], cost[begin : begin + BLOCK]
        each = 0.5 * d[:, None] * (w[:, None] - centroids) ** 2 + rates
        code = each.argmin(1)
        nothing = 0.5 * d * w**2 + zero
        found[begin : begin + BLOCK] = np.where(nothing < each[np.arange(len(w)), code], -1, code)
    return found


def _shared(weight: Tensor, mask: Tensor, curvature: Tensor, lam: float, k: int) -> Shared:
    values = weight.detach()[mask].double().cpu().numpy()
    if len(values) == 0:
        return Shared(mask=mask, book=stored_book(torch.zeros(0), weight.dtype), codes=np.zeros(0))
    own = curvature[mask.cpu()].numpy()
    centroids, codes = quantised(values, own, lam, k, mask.numel())
    kept = torch.from_numpy(codes >= 0)
    less = mask.clone()
    less[mask] = kept.to(mask.device)
    used, places = np.unique(codes[codes >= 0], return_inverse=True)
    return Shared(
        mask=less,
        book=stored_book(torch.from_numpy(centroids[used]), weight.dtype),
        codes=places.astype(np.uint16),
    )


def _curvature(
    model: nn.Module, masks: Mapping[str, Tensor], data: Any, progress: bool | None
) -> dict[str, Tensor]:
    """D of every entry of the weights in `masks`, float64 on the CPU; 1 without data or a view."""
    found = {name: torch.ones(mask.shape, dtype=torch.float64) for name, mask in masks.items()}
    if data is None:
        return found
    layers = calibrate(model, data, ("curvature",), progress=progress)
    for name, weight in weights_of(model).items():
        if weight.path in found and name in layers:
            curved = layers[name].curvature
            assert curved is not None  # it was asked for
            own = weight.view.parameter(weight.module, curved).double().cpu()
            if weight.source.index is None:
                found[weight.path] = own
            else:
                found[weight.path][weight.source.index] = own
    return found
