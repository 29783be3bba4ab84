"""Nodes whose output hardly varies are a constant, which a bias can stand for."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.scores.protocol import Score

__all__ = ["OutputVariance"]


@dataclass(frozen=True)
class OutputVariance(Score):
    """Var z of what a node's producers give, before norm and activation; several producers add up.

    Stands well beside least squares with an intercept, which hands the mean of what goes to the
    consumers' biases.

    References:
        Polyak and Wolf (2015), Channel-level acceleration of deep face representations, there of
        the activations.
    """

    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ("output_variance",)

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Variances in squared units of the outputs, float64."""
        total = torch.zeros(view.group.size, dtype=torch.float64)
        for layer, place in view.producers.values():
            total += layer.statistic("output_variance").cpu()[place].sum(1)
        return total
