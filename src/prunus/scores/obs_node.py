"""Optimal brain surgeon for nodes: what a class costs that the others cannot make up for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import positive
from prunus.elimination import damped_inverse, priced_weights
from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.scores.protocol import Score

__all__ = ["OBSNode", "Part", "node_trace"]

# Weights (out, in), damped inverse (in, in) and places (classes, columns) of one consumer.
Part = tuple[np.ndarray, np.ndarray, np.ndarray]


def node_trace(parts: Sequence[Part]) -> tuple[list[int], list[float]]:
    """Classes in the order in which they go, and what each adds to the consumers' error.

    With P = (G + λI)⁻¹ on the columns still there, removing class c and refitting all others costs
    tr(W_c (P_cc)⁻¹ W_cᵀ), summed over the consumers; the cheapest goes, of equals the last. Then
    W ← W − W_c (P_cc)⁻¹ P_c: and P ← P − P_:c (P_cc)⁻¹ P_c:.

    Args:
        parts: of every consumer; they are changed.
    """
    n = len(parts[0][2])
    left = np.arange(n)
    order: list[int] = []
    losses: list[float] = []
    for _ in range(n):
        price = np.zeros(len(left))
        for weight, inverse, place in parts:
            own = place[left]  # (left, columns)
            inner = inverse[own[:, :, None], own[:, None, :]]
            given = weight[:, own].transpose(1, 2, 0)  # (left, columns, out)
            price += (given * np.linalg.solve(inner, given)).sum((1, 2))
        at = len(left) - 1 - int(price[::-1].argmin())
        gone = int(left[at])
        order.append(gone)
        losses.append(max(float(price[at]), 0.0))
        left = np.delete(left, at)
        for weight, inverse, place in parts:
            columns = place[gone]
            rows = np.linalg.solve(inverse[np.ix_(columns, columns)], inverse[columns])
            weight -= weight[:, columns] @ rows
            inverse -= inverse[:, columns] @ rows
            weight[:, columns] = 0.0
    return order, losses


@dataclass(frozen=True)
class OBSNode(Score):
    """What removing each class adds to the consumers' error, once the others make up for it.

    Classes go one after another, the cheapest first; the score is the running maximum of what they
    cost, made to rise strictly, so that the best k classes are those that are left when all others
    have gone. With `+ls` the weights are those of the elimination. The same rule as structured
    optimal brain compression and ZipLM.

    Attributes:
        ridge: λ relative to the mean of the Gram's diagonal.

    References:
        Hassibi and Stork (1993), Optimal brain surgeon; Frantar and Alistarh (2022), Optimal brain
        compression; Kurtic, Frantar, Alistarh (2023), ZipLM, section 3.1.
    """

    ridge: float = 1e-4
    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self) -> None:
        positive("ridge", self.ridge)

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Prices in squared output units of the consumers, float64."""
        return view.once(self, lambda: self._prices(view))

    def _prices(self, view: ClassView) -> Float[Tensor, " classes"]:
        parts = []
        for layer, place in view.consumers.values():
            for part in layer.blocks():
                gram = part.statistic("gram")
                inverse = np.array(damped_inverse(gram, self.ridge))
                parts.append((priced_weights(part.weight, gram), inverse, place.numpy()))
        order, losses = node_trace(parts)
        return rising(order, losses)


def rising(order: Sequence[int], losses: Sequence[float]) -> Float[Tensor, " n"]:
    """Running maxima of the losses by item, made to rise strictly along the order.

    The factor 1 + t · 2⁻⁴⁰ of step t keeps items apart whose maximum is the same; where that is 0,
    the smallest numbers do.
    """
    most, scores = 0.0, torch.zeros(len(order), dtype=torch.float64)
    for t, (item, loss) in enumerate(zip(order, losses, strict=True)):
        most = max(most, loss)
        scores[item] = most * (1 + t * 2.0**-40) + t * 1e-300
    return scores
