"""The largest share of an output's sum that a weight ever has."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.classes import check_reduction
from prunus.scores.protocol import Score

__all__ = ["Share"]


@dataclass(frozen=True)
class Share(Score):
    """s = max over the calibration inputs of |w_ij| a_j(x) / Σ_k |w_ik| a_k(x), in [0, 1].

    The sum runs over the weights of row i with the sign of w_ij, and a is the positive or the
    negative part of the inputs: what the weight gives to one of the sums of one sign that the
    output is made of. Shares are relative to their own row, so that weights of a weak output count
    as much as those of a strong one.

    Attributes:
        side: for nodes, whose weights count.
        reduction: for nodes; "max" takes the largest share that a class ever has in one output,
            the sum over its taps: an upper bound on it, equal for linear layers.

    References:
        Baykal et al. (2022), SiPPing neural networks, Def. 1; Liebenwein et al. (2020), Provable
        filter pruning, Def. 1. Their code takes the largest tap, which is below the class's share.
    """

    side: Literal["consumer", "producer", "both"] = "consumer"
    reduction: Literal["sum", "l2", "mean", "max", "abs_sum"] = "max"
    statistics: ClassVar[tuple[str, ...]] = ("share",)

    def __post_init__(self) -> None:
        check_reduction(self.side, self.reduction)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Shares in [0, 1], float64."""
        return layer.statistic("share")
