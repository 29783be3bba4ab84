"""The mean squared output error of zeroing one weight: W² · diag G."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.classes import check_reduction
from prunus.scores.protocol import Score

__all__ = ["RemovalError", "removal_error"]


def removal_error(
    weight: Float[Tensor, "out in"], power: Float[Tensor, "#out in"]
) -> Float[Tensor, "out in"]:
    """Mean squared output error caused by zeroing each weight on its own.

    For y = W x and G = E[x xᵀ], zeroing W[i, j] alone costs W[i, j]² · G[j, j];
    the square root ranks weights as |W[i, j]| · ‖X[:, j]‖₂ does.

    Args:
        weight: weights W of the layer.
        power: the diagonal of G, E[x²] of every input, as a row or one row per output.

    Returns:
        Errors in squared output units, float64.

    Raises:
        ValueError: `power` has a negative or NaN entry.

    References:
        Sun et al. (2024), A simple and effective pruning approach for large
        language models, Eq. 1.
    """
    if not bool((power >= 0).all()):
        j = int(power.nan_to_num(nan=-math.inf).argmin())
        raise ValueError(
            f"`power` must be a mean square, >= 0, got {power.flatten()[j].item():.3g} at entry "
            f"{j}. Collect it from finite inputs."
        )
    return weight.to(power.dtype).square() * power


@dataclass(frozen=True)
class RemovalError(Score):
    """W² · diag G, the score of Wanda; for nodes, summed over a class's weights."""

    side: Literal["consumer", "producer", "both"] = "consumer"
    reduction: Literal["sum", "l2", "mean", "max", "abs_sum"] = "sum"
    statistics: ClassVar[tuple[str, ...]] = ("diag",)

    def __post_init__(self) -> None:
        check_reduction(self.side, self.reduction)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Errors in squared output units, float64."""
        return removal_error(layer.weight, layer.power().to(layer.weight.device))
