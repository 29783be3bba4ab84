"""ThiNet: channels whose joint removal changes the consumers' outputs least."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.imitation import joint_costs
from prunus.nodes import ClassView
from prunus.parts import NODES, Composition
from prunus.scores.protocol import Score

__all__ = ["ThiNet", "joint_costs", "removal_steps"]


def removal_steps(costs: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """The step, from 0, at which each item goes when the removed set grows as cheaply as it can.

    Of items that cost the same the one with the highest index goes first.
    """
    n = len(costs)
    step = torch.zeros(n, dtype=torch.float64)
    price = costs.diagonal().clone()  # of adding an item to what is removed
    for t in range(n):
        item = n - 1 - int(price.flip(0).argmin())
        step[item] = t
        price += 2 * costs[:, item]
        price[item] = torch.inf
    return step


@dataclass(frozen=True)
class ThiNet(Score):
    """The step at which a class goes when channels go greedily, by what they jointly give.

    The removed set T grows by the class that raises E‖Σ_{c∈T} W_c x_c‖² least. The paper estimates
    this on sampled positions and outputs; here it is exact, from the consumers' Gram matrices. Its
    rescaling of the kept channels is one least squares, of which `+ls` is the full one.

    Steps of different groups are not comparable, so the allocation must not read scores.

    References:
        Luo, Wu, Lin (2017), ThiNet: a filter level pruning method for deep neural network
        compression, Eq. 6 and Algorithm 1.
    """

    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ("gram",)

    def beside(self, recipe: Composition) -> str | None:
        """Refuses allocations that compare the steps of different groups."""
        if not recipe.allocation.reads_scores:
            return None
        return (
            f"{self!r} ranks the nodes of one group, so `allocation` must not read scores, got "
            f"{recipe.allocation!r}. Use Uniform()."
        )

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Steps in [0, classes), float64."""
        return removal_steps(joint_costs(view))
