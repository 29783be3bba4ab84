"""The largest share that a weight ever has in the part of its output that has its sign."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.calibration.statistics.protocol import Reads, Vectors
from prunus.layer import Layer

__all__ = ["Share"]

CHUNK = 2**21  # ratios held at a time


@dataclass(frozen=True)
class Share:
    """s = max over samples and positions of |w_ij| a_j(x) / z_i(x), (out, in).

    z_i(x) = Σ_k |w_ik| a_k(x) runs over the weights of row i with the sign of w_ij, and a is the
    positive or the negative part of the inputs: each combination of signs has sums of its own. A
    share is 0 where z_i(x) is. With `max_positions` the maximum is over the drawn patches.

    Sums of terms of one sign lose no digits, so z_i(x) > 0 is the test for a share, however small
    it is; the published code leaves out z_i below a fraction of its mean over the data, which would
    make the statistic depend on how they are batched.

    References:
        Baykal et al. (2022), SiPPing neural networks, Def. 1; Liebenwein et al. (2020), Provable
        filter pruning, Def. 1.
    """

    name: ClassVar[str] = "share"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="out")

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        weight = layer.weight.to(reading.values)
        groups = reading.values.shape[1]
        rows = weight.reshape(groups, -1, weight.shape[1])
        parts = [_block_share(rows[g], reading.values[:, g]) for g in range(groups)]
        value = torch.cat(parts)
        return value if total is None else torch.maximum(total, value)

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(one, other)

    def finish(self, total: Tensor, count: int) -> Tensor:
        return total

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return out * wide


def _block_share(
    weight: Float[Tensor, "out in"], inputs: Float[Tensor, "positions in"]
) -> Float[Tensor, "out in"]:
    """The shares over one block of inputs that all rows of `weight` read."""
    positive = weight > 0
    step = max(1, CHUNK // max(1, weight.numel()))
    found = torch.zeros_like(weight)
    for part in torch.split(inputs, step):
        for a in (part.clamp(min=0), (-part).clamp(min=0)):
            if not bool(a.any()):
                continue
            for sign in (positive, ~positive):
                own = weight.abs() * sign
                z = a @ own.T
                inverse = torch.where(z > 0, 1 / z, 0.0)
                ratio = (inverse[:, :, None] * a[:, None, :]).amax(0)
                found = torch.maximum(found, own * ratio)
    return found.clamp(max=1)  # a lone term over itself may round above
