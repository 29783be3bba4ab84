"""Filters near the geometric median of their layer can be made up for by the others."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.scores.protocol import Score

__all__ = ["FPGM", "sum_of_distances"]


def sum_of_distances(rows: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
    """Σ_j ‖x_i − x_j‖ of every row i, float64; least near the geometric median of the rows.

    Distances are those of differences: through inner products they would cancel.

    Example:
        >>> sum_of_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
        tensor([6.0000, 9.2426, 5.2426], dtype=torch.float64)
    """
    points = rows.detach().to("cpu", torch.float64)
    gaps = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return gaps.sum(1)


@dataclass(frozen=True)
class FPGM(Score):
    """Filter pruning via the geometric median: Σ_c′ ‖W_c − W_c′‖ over a group's filters.

    A class's filter is all that its producers compute it with, one after another; biases and norms
    do not count. The paper has one producer, where this is its filter with the kernel flattened.

    References:
        He et al. (2019), Filter pruning via geometric median for deep convolutional neural
        networks acceleration, Eqs. 5 to 7.
    """

    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ()

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Sums of distances in units of the weights, float64.

        Raises:
            ValueError: no layer makes the classes.
        """
        if not view.producers:
            raise ValueError(
                f"No layer makes the channels of {view.name!r}, so FPGM() has no filters to "
                f"compare. Exclude the layer, or use Magnitude()."
            )
        filters = [
            layer.weight.detach().to("cpu", torch.float64)[place].flatten(1)
            for layer, place in view.producers.values()
        ]
        return sum_of_distances(torch.cat(filters, dim=1))
