"""SparseGPT: one sweep over the columns that prunes and makes up for it to the right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.check import finite, positive, whole
from prunus.granularity import Granularity
from prunus.joint.protocol import Joint, JointResult
from prunus.layer import Layer

__all__ = ["SparseGPT", "keep_in_blocks", "keep_in_layer", "keep_in_rows", "sparsegpt"]

# Prices (columns, rows) of a slice of columns and where the slice starts -> what is kept.
Choose = Callable[[Tensor, int], Tensor]


def sparsegpt(
    weight: Float[Tensor, "out in"],
    gram: Float[Tensor, "in in"],
    choose: Choose,
    *,
    ridge: float = 1e-2,
    block: int = 128,
    stride: int | None = None,
) -> tuple[Bool[Tensor, "out in"], Float[Tensor, "out in"]]:
    """Prune column after column; what column j loses is made up for by the columns right of it.

    With U the upper Cholesky factor of (G + λI)⁻¹, weight w_ij costs w_ij²/U_jj², and removing it
    changes the rest of its row by −U_j: w_ij/U_jj. Columns left of j stay as they are, which makes
    this a sweep of O(out · in²) rather than the least-squares optimum for its mask. Updates right
    of a block wait until the block is done and then go as one matrix product. Weights that are zero
    at the start, as an earlier step leaves what it removed, have the lowest price of all: the sweep
    would give them values, and a price, before it comes to them. Next are the weights of inputs
    that are always zero.

    Args:
        weight: W.
        gram: G = E[x xᵀ].
        choose: decides a slice of `stride` columns from the prices at its start.
        ridge: λ relative to the mean of G's diagonal.
        block: columns between two matrix products; no influence on the result beyond `stride`.
        stride: columns decided at once; `block` where None.

    Returns:
        the mask, and the weights in float64's precision but the dtype of `weight`.

    Raises:
        ValueError: shapes, NaN, or a Gram matrix that is no second moment.

    References:
        Frantar and Alistarh (2023), SparseGPT: massive language models can be accurately pruned
        in one-shot, Algorithm 1.
    """
    rows, n = weight.shape
    if gram.shape[0] != n:
        raise ValueError(
            f"`gram` must be {n} x {n}, as the inputs of `weight`, got {tuple(gram.shape)}."
        )
    whole("block", block, low=1)
    stride = block if stride is None else stride
    block = max(block // stride, 1) * stride
    factor = _upper_factor(finite("gram", gram).to(torch.float64), ridge).to(weight.device)
    # Columns of W are what the sweep reads and writes, so they lie as rows.
    w = finite("weight", weight).T.to(torch.float64, copy=True).contiguous()
    kept, gone = torch.ones_like(w, dtype=torch.bool), w == 0
    diagonal = factor.diagonal()
    power = gram.diagonal().to(weight.device)
    dead = ((power == 0) & power.any())[:, None]  # all of them dead: by size
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = w.new_zeros(stop - start, rows)
        for j in range(start, stop):
            done = j - start
            if done % stride == 0:
                end = min(j + stride, stop)
                if done:  # what the slices before did to this one
                    w[j:end] -= factor[start:j, j:end].T @ errors[:done]
                price = (w[j:end] / diagonal[j:end, None]).square()
                price.masked_fill_(dead[j:end], -0.5).masked_fill_(gone[j:end], -1.0)
                kept[j:end] = choose(price, j)
                first = j
            elif j > first:  # what the columns before did, within the slice
                w[j] -= factor[first:j, j] @ errors[first - start : done]
            torch.div(w[j], diagonal[j], out=errors[done]).masked_fill_(kept[j], 0.0)
            w[j].mul_(kept[j])
        w[stop:] -= factor[start:stop, stop:].T @ errors
    return kept.T.contiguous(), w.T.contiguous().to(weight.dtype)


def keep_in_rows(kept: Int[Tensor, " out"], weight: Float[Tensor, "out in"]) -> Choose:
    """Exactly `kept[h]` weights in row h, in each slice its share by the non-zero weights there."""
    counts = kept.to(weight.device, torch.int64)
    live = weight != 0
    upto = _up_to(live | (live.sum(1) < counts)[:, None])

    def choose(price: Tensor, start: int) -> Tensor:
        stop = start + len(price)
        below = _share(counts, upto[:, start], upto[:, -1])
        here = _share(counts, upto[:, stop], upto[:, -1]) - below
        return _best(price, here.to(price.device))

    return choose


def keep_in_layer(kept: int, weight: Float[Tensor, "out in"]) -> Choose:
    """Exactly `kept` weights, in each slice its share likewise, wherever its rows need them."""
    count, live = torch.tensor(kept, device=weight.device), weight != 0
    upto = _up_to(live | (live.sum() < count)).sum(0)

    def choose(price: Tensor, start: int) -> Tensor:
        stop = start + len(price)
        here = int(_share(count, upto[stop], upto[-1]) - _share(count, upto[start], upto[-1]))
        flat = torch.zeros(price.numel(), dtype=torch.bool, device=price.device)
        flat[price.flatten().argsort(descending=True, stable=True)[:here]] = True
        return flat.view_as(price)

    return choose


def keep_in_blocks(kept: Int[Tensor, "out blocks"]) -> Choose:
    """Exactly `kept[h, b]` weights of row h in its b-th slice of columns."""

    def choose(price: Tensor, start: int) -> Tensor:
        here = kept[:, start // len(price)].to(price.device)
        return _best(price, here)

    return choose


def _best(price: Tensor, kept: Tensor) -> Tensor:
    """The `kept[h]` highest prices of each row, ties to the lower column."""
    rank = price.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    return rank.less(kept)


def _up_to(live: Bool[Tensor, "out in"]) -> Int[Tensor, "out columns"]:
    """How many of each row's weights lie left of each column, and of the end."""
    return torch.nn.functional.pad(live.cumsum(1), (1, 0))


def _share(kept: Tensor, part: Tensor | int, total: Tensor | int) -> Tensor:
    """round(kept · part / total) in whole numbers, halves up; 0 of nothing."""
    whole = torch.as_tensor(total).clamp_min(1)
    share: Tensor = (2 * kept * part + whole) // (2 * whole)
    return share


def _upper_factor(gram: Tensor, ridge: float) -> Tensor:
    """U with UᵀU = (G + λI)⁻¹, upper triangular."""
    scale = float(gram.diagonal().mean()) if len(gram) else 0.0
    if scale < 0 or (scale == 0 and bool(gram.any())):
        raise ValueError(f"`gram` must be a second moment, got mean diagonal {scale:.3g}.")
    if scale == 0:
        return torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    damped = gram.clone()
    damped.diagonal().add_(positive("ridge", ridge) * scale)
    # Each step lets go of what it has read, so that two matrices are held beside the Gram.
    matrix, fault = torch.linalg.cholesky_ex(damped)
    del damped
    if int(fault) == 0:
        matrix = torch.cholesky_inverse(matrix)
        matrix, fault = torch.linalg.cholesky_ex(matrix, upper=True)
    if int(fault) != 0:
        raise ValueError(
            f"`gram` is not positive definite with ridge {ridge:.0e}. "
            f"Collect it in float64, or pass a larger ridge."
        )
    upper: Tensor = matrix
    return upper


@dataclass(frozen=True)
class SparseGPT(Joint):
    """One pruning and compensating sweep over the columns; also N:M.

    Attributes:
        ridge: λ relative to the mean of the Gram's diagonal.
        block: columns decided at once (for N:M, a block of M).

    References:
        Frantar and Alistarh (2023).
    """

    ridge: float = 1e-2
    block: int = 128
    statistics: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self) -> None:
        positive("ridge", self.ridge)
        whole("block", self.block, low=1)

    def __call__(
        self, layer: Layer, granularity: Granularity, kept: Int[Tensor, " pools"]
    ) -> JointResult:
        """Mask and weights with exactly the counts asked for.

        Raises:
            ValueError: the layer has no Gram matrix, or the units are nodes.
        """
        layer.require("gram")
        masks, weights, used = [], [], 0
        order = granularity.order(layer)
        back = None if order is None else order.argsort()
        parts = layer.blocks()
        for index, part in enumerate(parts):
            rows = len(part.weight)
            stride = None
            if granularity.pools == "row":
                choose = keep_in_rows(kept[index * rows : (index + 1) * rows], part.weight)
            elif granularity.pools == "block" and granularity.fixed is not None:
                stride = granularity.fixed[1]
                choose = keep_in_blocks(kept.view(len(parts), rows, -1)[index])
            elif granularity.pools == "layer":
                upto = int(_share(kept, index + 1, len(parts)))
                choose, used = keep_in_layer(upto - used, part.weight), upto
            else:
                raise ValueError(
                    f"SparseGPT removes edges, got {granularity!r}. "
                    f"Use Edge(), EdgePerRow() or NM(n, m)."
                )
            assert part.gram is not None  # required above
            mask, weight = sparsegpt(
                part.weight if order is None else part.weight[:, order],
                part.gram if order is None else part.gram[order][:, order],
                choose,
                ridge=self.ridge,
                block=self.block,
                stride=stride,
            )
            masks.append(mask if back is None else mask[:, back])
            weights.append(weight if back is None else weight[:, back])
        return JointResult(mask=torch.cat(masks), weight=torch.cat(weights), ridge=self.ridge)
