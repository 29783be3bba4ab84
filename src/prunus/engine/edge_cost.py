"""What so many kept weights cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from prunus.cost import Anatomy, Cost, edge_cost

__all__ = ["EdgeCost"]


@dataclass(frozen=True, eq=False)
class EdgeCost:
    """The exact cost of so many kept weights per pool; what was zero before goes first.

    Attributes:
        sizes: of the network.
        filled: weights of each pool that are not zero; all of them where None.
        refused: {layer: reason} of those that are left alone.
    """

    sizes: Anatomy
    filled: Mapping[str, Int[Tensor, " pools"]] | None = None
    nodes: bool = False
    multiple_of: int = 1
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]:
        """The module of a layer, where that holds several layers' weights."""
        return self.sizes.homes

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every layer's weight, kernel axes included."""
        return {name: self.sizes.weight_shape(name) for name in self.sizes.weights}

    def __call__(self, kept: Mapping[str, Int[Tensor, " pools"]]) -> Cost:
        """The whole network's cost."""
        counts = {
            name: int((k if self.filled is None else torch.minimum(k, self.filled[name])).sum())
            for name, k in kept.items()
        }
        return edge_cost(self.sizes, counts)
