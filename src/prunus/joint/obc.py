"""Optimal brain compression: the elimination of OBS under N:M or block constraints."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.check import positive, whole
from prunus.compensation.least_squares import least_squares
from prunus.dpp.cholesky import eliminate, smallest_loss
from prunus.elimination import damped_inverse, priced_weights
from prunus.granularity import Granularity
from prunus.joint.protocol import Joint, JointResult
from prunus.layer import Layer
from prunus.threads import single_threaded

__all__ = ["OBC", "obc_block_masks", "obc_pattern_masks"]


@single_threaded
def obc_pattern_masks(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    kept: Int[Tensor, "out blocks"],
    *,
    ridge: float = 1e-4,
) -> Bool[Tensor, "out in"]:
    """Masks that keep `kept[h, b]` weights in the b-th run of M = in / blocks inputs of row h.

    The elimination of OBS, in which a run that has come down to its count gives up no more.

    Args:
        weight: W.
        gram: G = E[x xᵀ].
        kept: counts of every row's runs; for N:M all are N.
        ridge: λ relative to the mean of G's diagonal.

    Raises:
        ValueError: shapes that do not fit, a count outside its run, NaN, or a Gram matrix that is
            no second moment.

    References:
        Frantar and Alistarh (2022), Optimal brain compression, section 4 (N:M sparsity).
    """
    rows, n = weight.shape
    if kept.ndim != 2 or len(kept) != rows or not kept.shape[1] or n % kept.shape[1]:
        raise ValueError(
            f"`kept` must hold a count for each run of each of the {rows} rows of {n} inputs, in "
            f"runs of equal length, got shape {tuple(kept.shape)}."
        )
    size = n // kept.shape[1]
    _within(kept, size)
    _square(gram, n)
    inverse = damped_inverse(gram, ridge)
    w = priced_weights(weight, gram)
    goals = kept.cpu().numpy()
    mask = np.ones((rows, n), dtype=bool)
    for h in range(rows):
        left = np.full(kept.shape[1], size)

        def allowed(items: np.ndarray, left: np.ndarray = left, h: int = h) -> np.ndarray:
            run = items // size
            spare: np.ndarray = left[run] > goals[h, run]
            return spare

        def record(
            step: int,
            item: int,
            pivot: float,
            value: float,
            column: np.ndarray,
            left: np.ndarray = left,
        ) -> None:
            left[item // size] -= 1

        steps = n - int(goals[h].sum())
        pick = smallest_loss(allowed)
        gone = eliminate(inverse, steps, pick, carry=w[h], compact=64, record=record)
        mask[h, gone] = False
    return torch.from_numpy(mask).to(weight.device)


@single_threaded
def obc_block_masks(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    kept: Int[Tensor, " out"],
    *,
    size: int,
    ridge: float = 1e-4,
) -> Bool[Tensor, "out in"]:
    """Masks that keep `kept[h]` whole runs of `size` neighbouring inputs in row h.

    A run B costs w_Bᵀ (P_BB)⁻¹ w_B; the cheapest goes, its weights one after another through the
    elimination of OBS, while every run's own block of P is followed.

    Args:
        weight: W.
        gram: G = E[x xᵀ].
        kept: runs kept in each row.
        size: inputs in a run; divides the width.
        ridge: λ relative to the mean of G's diagonal.

    Raises:
        ValueError: shapes that do not fit, a count of runs that are not there, NaN, or a Gram
            matrix that is no second moment.

    References:
        Frantar and Alistarh (2022), section 4 (block sparsity).
    """
    rows, n = weight.shape
    if n % whole("size", size, low=1):
        raise ValueError(f"`size` must divide the {n} inputs, got {size}. Exclude the layer.")
    if tuple(kept.shape) != (rows,):
        raise ValueError(
            f"`kept` must hold one count of runs for each of the {rows} rows, got shape "
            f"{tuple(kept.shape)}."
        )
    _within(kept, n // size)
    _square(gram, n)
    inverse = damped_inverse(gram, ridge)
    w = priced_weights(weight, gram)
    runs = n // size
    ahead = np.arange(runs)
    start = inverse.reshape(runs, size, runs, size)[ahead, :, ahead]
    mask = np.ones((rows, n), dtype=bool)
    for h, count in enumerate(kept.tolist()):
        own = start.copy()  # P_BB of every run
        alive = np.ones(runs, dtype=bool)
        queue: list[int] = []

        def pick(
            d: np.ndarray,
            w: np.ndarray | None,
            items: np.ndarray,
            own: np.ndarray = own,
            alive: np.ndarray = alive,
            queue: list[int] = queue,
        ) -> int:
            assert w is not None  # carried below
            if not queue:
                values = w.reshape(runs, size)[alive]
                solved = np.linalg.solve(own[alive], values[..., None])[..., 0]
                cheapest = int(np.flatnonzero(alive)[(values * solved).sum(1).argmin()])
                alive[cheapest] = False
                queue.extend(range(cheapest * size, (cheapest + 1) * size))
            return queue.pop(0)

        def record(
            step: int,
            item: int,
            pivot: float,
            value: float,
            column: np.ndarray,
            own: np.ndarray = own,
        ) -> None:
            c = column.reshape(runs, size)
            own -= c[:, :, None] * c[:, None, :]

        gone = eliminate(inverse, n - count * size, pick, carry=w[h], record=record)
        mask[h, gone] = False
    return torch.from_numpy(mask).to(weight.device)


def _within(kept: Tensor, most: int) -> None:
    if bool(((kept < 0) | (kept > most)).any()):
        raise ValueError(
            f"`kept` must lie in [0, {most}], got values from {int(kept.min())} to "
            f"{int(kept.max())}."
        )


def _square(gram: Tensor, n: int) -> None:
    if tuple(gram.shape) != (n, n):
        raise ValueError(
            f"`gram` must be {n} x {n}, as the inputs of `weight`, got {tuple(gram.shape)}."
        )


@dataclass(frozen=True)
class OBC(Joint):
    """OBS elimination for N:M patterns, or for runs of neighbouring inputs.

    Attributes:
        ridge: λ relative to the mean of the Gram's diagonal.
        size: with one pool per output, inputs that go together; 1 removes them singly.

    References:
        Frantar and Alistarh (2022), Optimal brain compression.
    """

    ridge: float = 1e-4
    size: int = 1
    statistics: ClassVar[tuple[str, ...]] = ("gram",)
    pools: ClassVar[tuple[str, ...]] = ("row", "block")

    def __post_init__(self) -> None:
        positive("ridge", self.ridge)
        whole("size", self.size, low=1)

    def __call__(
        self, layer: Layer, granularity: Granularity, kept: Int[Tensor, " pools"]
    ) -> JointResult:
        """Mask and weights with exactly the counts asked for; the weights are the OBS update.

        Raises:
            ValueError: no Gram matrix, units that are neither N:M nor edges of a row, or counts
                that are no multiple of `size`.
        """
        layer.require("gram")
        parts = layer.blocks()
        masks, weights, ridges = [], [], []
        for part, own in zip(parts, kept.cpu().chunk(len(parts)), strict=True):
            assert part.gram is not None  # required above
            if granularity.pools == "block":
                counts = own.view(len(part.weight), -1)
                order = granularity.order(layer)
                if order is None:
                    order = torch.arange(part.weight.shape[1])
                mask = obc_pattern_masks(
                    part.weight[:, order], part.gram[order][:, order], counts, ridge=self.ridge
                )[:, order.argsort()]
            elif granularity.pools == "row":
                if bool((own % self.size).any()):
                    raise ValueError(
                        f"Counts must be multiples of the run length {self.size}, got "
                        f"{int(own[(own % self.size).argmax()])} in layer {layer.name!r}. Give a "
                        f"plan with such counts, or a density that makes them."
                    )
                mask = obc_block_masks(
                    part.weight, part.gram, own // self.size, size=self.size, ridge=self.ridge
                )
            else:
                raise ValueError(
                    f"OBC needs N:M or edges of rows, got {granularity!r}. "
                    f"Use NM(n, m) or EdgePerRow()."
                )
            fit = least_squares(
                part.weight, part.gram.to(part.weight.device), mask, ridge=self.ridge
            )
            masks.append(mask)
            weights.append(fit.weight)
            ridges.append(float(fit.ridge.max()))
        return JointResult(mask=torch.cat(masks), weight=torch.cat(weights), ridge=max(ridges))
