"""Scores of nodes by what they emit: how much, and how often anything."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.scores.protocol import Score

__all__ = ["APoZ", "MeanActivation", "mean_of_inputs"]


def mean_of_inputs(view: ClassView, statistic: str) -> Float[Tensor, " classes"]:
    """A statistic of every input, averaged over the inputs of all consumers that read a class.

    For a convolution these are the taps of a channel, padding included; for a grouped one, those in
    all its groups.
    """
    total, entries = torch.zeros(view.group.size, dtype=torch.float64), 0
    for layer, place in view.consumers.values():
        values = layer.statistic(statistic).to("cpu", torch.float64).reshape(layer.groups, -1)
        total += values[:, place].sum((0, 2))
        entries += layer.groups * place.shape[1]
    return total / max(entries, 1)


@dataclass(frozen=True)
class MeanActivation(Score):
    """E|a|, what a node emits on average, as its consumers read it.

    References:
        Molchanov et al. (2017), Pruning convolutional neural networks for resource efficient
        inference, section 2.2, there after the activation and before any pooling.
    """

    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ("absolute",)

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Mean absolute activations, float64."""
        return mean_of_inputs(view, "absolute")


@dataclass(frozen=True)
class APoZ(Score):
    """1 − APoZ, the share of samples and positions at which a node emits anything.

    Read where the consumers read it: behind a max pooling zeros are rarer than behind the ReLU,
    where the paper counts them. The paper removes what lies beyond a threshold; here counts are
    given.

    References:
        Hu et al. (2016), Network trimming: a data-driven neuron pruning approach towards efficient
        deep architectures, Eq. 1.
    """

    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ("zeros",)

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Shares in [0, 1], float64.

        Raises:
            ValueError: all nodes of the group are zero equally often, as behind an activation that
                is never zero: there is nothing to choose by.
        """
        zeros = mean_of_inputs(view, "zeros")
        if len(zeros) > 1 and bool((zeros == zeros[0]).all()):
            raise ValueError(
                f"All nodes of {view.name!r} are zero equally often ({float(zeros[0]):.3g} of the "
                f"time), as behind GELU or tanh, so APoZ() cannot rank them. Exclude the layer, or "
                f"use MeanActivation()."
            )
        return 1 - zeros
