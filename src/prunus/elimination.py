"""The row-wise backward elimination of optimal brain surgeon: every density in one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.check import finite, positive, whole
from prunus.dpp.cholesky import eliminate, smallest_loss
from prunus.later import Later
from prunus.layer import Layer
from prunus.threads import single_threaded

__all__ = [
    "ObsTrace",
    "damped_inverse",
    "global_counts",
    "layer_traces",
    "obs_masks",
    "obs_trace",
    "priced_weights",
]

lapack = Later("scipy.linalg.lapack")

_COMPACT = 64  # pivots between two compactions: the panel stays in the second-level cache


@dataclass(frozen=True, eq=False, kw_only=True)
class ObsTrace:
    """In which order each row loses its weights, and what each loss costs.

    Attributes:
        order: order[h, t] is the t-th weight that row h loses; −1 beyond the last step.
        loss: loss[h, t] is what that step adds to E‖(w − w′)x‖² + λ‖w − w′‖², squared output
            units; infinite beyond the last step.
        ridge: relative damping λ / mean(diag G).
    """

    order: Int[Tensor, "out steps"]
    loss: Float[Tensor, "out steps"]
    ridge: float

    @property
    def least(self) -> int:
        """How many weights are left in every row when the elimination stops."""
        return int((self.order < 0).sum(1).max()) if self.order.numel() else 0

    def mask(self, kept: Int[Tensor, " out"]) -> Bool[Tensor, "out steps"]:
        """The mask with `kept[h]` weights in row h; masks of smaller counts lie inside larger ones.

        Raises:
            ValueError: a count needs more steps than were run, or lies outside 0..in.
        """
        rows, n = self.order.shape
        counts = kept.to(torch.int64).cpu()
        if counts.shape != (rows,) or bool(((counts < 0) | (counts > n)).any()):
            raise ValueError(
                f"`kept` must hold one count in [0, {n}] for each of the {rows} rows, got "
                f"{tuple(counts.shape)} with values {counts.min()} to {counts.max()}."
            )
        gone = torch.arange(n)[None] < (n - counts)[:, None]
        if bool((self.order[gone] < 0).any()):
            raise ValueError(
                f"The elimination stopped before {int(counts.min())} kept weights. Run it further."
            )
        mask = torch.ones(rows, n, dtype=torch.bool)
        mask[torch.arange(rows)[:, None].expand(rows, n)[gone], self.order[gone]] = False
        return mask


def damped_inverse(gram: Float[Tensor, "in in"], ridge: float) -> np.ndarray:
    """P = (G + λI)⁻¹ with λ = ridge · trace(G)/n, symmetric to the last bit.

    Raises:
        ValueError: G is not finite, or not positive definite with this ridge.
    """
    damping = positive("ridge", ridge)
    g = finite("gram", gram).detach().to(torch.float64).cpu().numpy().copy()
    n = len(g)
    scale = float(np.trace(g)) / n if n else 0.0
    if scale <= 0:
        if scale < 0 or g.any():
            raise ValueError(f"`gram` must be a second moment, got trace {scale * n:.3g}.")
        return np.eye(n)  # inputs that are always zero: every order of removal is free
    g.flat[:: n + 1] += damping * scale
    factor, fault = lapack.dpotrf(g.T, lower=1, clean=1, overwrite_a=1)
    if fault:
        raise ValueError(
            f"`gram` is not positive definite with ridge {damping:.0e}. "
            f"Collect it in float64, or pass a larger ridge."
        )
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    lower: np.ndarray = inverse  # Fortran order: its lower triangle is the upper one of the C view
    view = lower.T
    for start in range(0, n, 512):
        stop = min(start + 512, n)
        block = view[start:stop, start:stop]
        block[np.tril_indices(stop - start, -1)] = block.T[np.tril_indices(stop - start, -1)]
        view[stop:, start:stop] = view[start:stop, stop:].T
    return view


def priced_weights(weight: Float[Tensor, "out in"], gram: Float[Tensor, "in in"]) -> np.ndarray:
    """W in float64, with the weights of inputs that are always zero scaled by 1e-100.

    What such weights cost is the damping alone, λw²; so scaled they go before every weight that
    matters, yet after those that are zero already, and in the order of their size.

    Raises:
        ValueError: a weight is not finite.
    """
    w = finite("weight", weight).detach().to("cpu", torch.float64).numpy().copy()
    w[:, (gram.detach().diagonal() == 0).cpu().numpy()] *= 1e-100
    return w


@single_threaded
def obs_trace(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    *,
    ridge: float = 1e-4,
    least: int = 0,
) -> ObsTrace:
    """Remove the weights of every row one after another, each time the one that costs least.

    With P = (G + λI)⁻¹ on the weights still there, weight p costs w_p² / P_pp, and the others move
    by −P_:p w_p / P_pp. n³/6 multiply-adds a row for all densities, memory n² + 64 n. Weights of
    inputs that are always zero go first.

    Args:
        weight: W.
        gram: G = E[x xᵀ].
        ridge: λ relative to the mean of G's diagonal. Layer errors are the same from 1e-10 to 1e-4.
        least: stop when this many weights are left.

    Raises:
        ValueError: shapes, NaN, or a Gram matrix that is no second moment.

    References:
        Hassibi and Stork (1993), Second order derivatives for network pruning: optimal brain
        surgeon; Frantar and Alistarh (2022), Optimal brain compression, Algorithm 1.
    """
    rows, n = weight.shape
    if gram.shape[0] != n:
        raise ValueError(
            f"`gram` must be {n} x {n}, as the inputs of `weight`, got {tuple(gram.shape)}."
        )
    steps = n - whole("least", least, low=0, high=n)
    inverse = damped_inverse(gram, ridge)
    w = priced_weights(weight, gram)
    # d(G + λI)dᵀ rises by w²/P: G's own unit, since P is the inverse of G + λI itself.
    compact = max(_COMPACT, min(2 * _COMPACT, n // 24))  # wide layers: fewer copies
    order = np.full((rows, n), -1, dtype=np.int64)
    loss = np.full((rows, n), np.inf)
    for h in range(rows):

        def record(
            step: int, item: int, pivot: float, value: float, column: np.ndarray, h: int = h
        ) -> None:
            order[h, step] = item
            loss[h, step] = value * value / pivot

        eliminate(inverse, steps, smallest_loss(), carry=w[h], compact=compact, record=record)
    return ObsTrace(order=torch.from_numpy(order), loss=torch.from_numpy(loss), ridge=ridge)


def obs_masks(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    kept_counts: Sequence[int],
    ridge: float = 1e-4,
) -> tuple[list[Bool[Tensor, "out in"]], ObsTrace]:
    """Nested masks with the same count in every row, for several counts, from one elimination.

    Args:
        weight: W.
        gram: G = E[x xᵀ].
        kept_counts: weights kept in each row, one mask for each.
        ridge: as `obs_trace`.

    Returns:
        the masks in the order of `kept_counts`, and the trace.
    """
    rows, n = weight.shape
    counts = [whole("kept_counts", k, low=0, high=n) for k in kept_counts]
    trace = obs_trace(weight, gram, ridge=ridge, least=min(counts, default=n))
    masks = [trace.mask(torch.full((rows,), k)).to(weight.device) for k in counts]
    return masks, trace


def layer_traces(layer: Layer, *, ridge: float, least: Sequence[int]) -> list[ObsTrace]:
    """The trace of every convolution group of a layer (of the layer, where it has one group).

    A layer that remembers keeps its trace, and gives it where that goes down as far as is asked.
    Where it does not, the next one runs to the end: a third count may follow.

    Args:
        layer: with a Gram matrix.
        ridge: as `obs_trace`.
        least: for each group, how many weights may be left at the end.
    """
    found = []
    for part, low in zip(layer.blocks(), least, strict=True):
        key, known = ("obs trace", ridge), part.found
        trace: ObsTrace | None = None if known is None else known.get(key)
        if trace is None or trace.least > low:
            end = low if trace is None else 0
            trace = obs_trace(part.weight, part.statistic("gram"), ridge=ridge, least=end)
            if known is not None:
                known[key] = trace
        found.append(trace)
    return found


def global_counts(
    losses: Mapping[Any, Float[Tensor, "out steps"]], kept: int, *, least: int = 0
) -> dict[Any, Int[Tensor, " out"]]:
    """Share one budget among all rows of all layers, from the losses of their traces.

    A row gives up its weights in its own order, so a weight's price is the largest loss up to it
    (the running maximum); the cheapest `total − kept` weights of all rows go. Ties go to the
    earlier layer, row and step.

    Args:
        losses: {name: loss} of `ObsTrace`s.
        kept: weights kept in all.
        least: weights that every row keeps.

    Returns:
        {name: kept count of each row}; they sum to `kept`.

    Raises:
        ValueError: no losses, a loss that is NaN, or `kept` is not a whole number between what
            `least` demands and the total.
    """
    if not losses:
        raise ValueError("`losses` must hold the loss of at least one trace, got none.")
    for name, values in losses.items():
        if bool(values.isnan().any()):
            raise ValueError(
                f"The losses of {name!r} must be numbers, got NaN. Run its trace again."
            )
    total = sum(values.numel() for values in losses.values())
    floor = sum(min(least, values.shape[1]) * values.shape[0] for values in losses.values())
    kept = whole("kept", kept, low=floor, high=total)
    prices = []
    for values in losses.values():
        price = values.cummax(dim=1).values.clone()
        if least:
            price[:, max(values.shape[1] - least, 0) :] = torch.inf
        prices.append(price.flatten())
    gone = torch.zeros(total, dtype=torch.bool)
    gone[torch.cat(prices).argsort(stable=True)[: total - kept]] = True
    counts, start = {}, 0
    for name, values in losses.items():
        part = gone[start : start + values.numel()].view(values.shape)
        counts[name] = values.shape[1] - part.sum(1)
        start += values.numel()
    return counts
