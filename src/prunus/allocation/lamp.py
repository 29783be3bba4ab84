"""Layers compete by how much of what they still hold a weight is."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.allocation.growth import CostOf, Pools
from prunus.allocation.rules import Allocation, Global
from prunus.budget import Budget, Plan
from prunus.check import positive, whole

__all__ = ["LAMP", "lamp_scores"]


def lamp_scores(
    scores: Float[Tensor, "pools units"], power: float = 2.0
) -> Float[Tensor, "pools units"]:
    """sᵤ^power / Σ sᵥ^power over the units v of the same layer that rank no lower than u.

    Units are ranked over all pools of the layer, ties by the lower index; the best has score 1.
    Units that an earlier step removed (−∞) stay −∞ and count nowhere.

    Args:
        scores: one layer's pools, ≥ 0 (or −∞).
        power: 2 for magnitudes; 1 for scores that are squares already.

    Returns:
        scores in [0, 1], float64.

    Raises:
        ValueError: a negative score.

    References:
        Lee et al. (2021), Layer-adaptive sparsity for the magnitude-based pruning, Eq. 1.
    """
    flat = scores.detach().to("cpu", torch.float64).flatten()
    alive = flat > -torch.inf
    if bool((flat[alive] < 0).any()):
        raise ValueError(
            f"LAMP() needs scores >= 0, got {float(flat[alive].min()):.3g}. Use a score such as "
            f"Magnitude()."
        )
    order = flat.argsort(descending=True, stable=True)
    ranked = flat[order].clamp(min=0)
    if len(ranked) and float(ranked[0]) > 0:
        ranked = ranked / ranked[0]
    value = ranked**power
    held = value.cumsum(0)
    result = torch.empty_like(flat)
    result[order] = torch.where(held > 0, value / held.clamp(min=1e-300), 0.0)
    return result.masked_fill(~alive, -torch.inf).view(scores.shape)


@dataclass(frozen=True)
class LAMP(Allocation):
    """Global allocation on layer-adaptive scores: what removing a unit costs its layer, relatively.

    The best unit of every layer scores 1, so no layer collapses before all are down to one unit.

    Attributes:
        power: 2 for magnitudes (the paper); 1 for scores that are squares already.
        minimum: units that every pool keeps at least, met inside the total.

    References:
        Lee et al. (2021), Layer-adaptive sparsity for the magnitude-based pruning.
    """

    power: float = 2.0
    minimum: int = 1

    def __post_init__(self) -> None:
        positive("power", self.power)
        whole("minimum", self.minimum, low=0)

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan:
        """The plan for a budget."""
        adaptive = {name: lamp_scores(scores, self.power) for name, scores in pools.items()}
        return Global(minimum=self.minimum)(adaptive, cost, budget)
