"""Nodes from which least squares can make the consumers' outputs best."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from prunus.check import positive
from prunus.imitation import consumers_of, forward_trace
from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.selection.choice import Choice, Selection, checked_counts

__all__ = ["ForwardNodes"]


@dataclass(frozen=True)
class ForwardNodes(Selection):
    """Classes come in one by one, each the one that least squares on all consumers gains most from.

    The greedy counterpart of `OBSNode`, which removes; where few classes are kept this one looks
    fewer steps ahead. One block pivoted elimination of the consumers' Gram matrices gives nested
    sets of every count. It is made for `+ls`. With inputs="pruned" the gains are those towards the
    dense outputs from the inputs as they are by then: in deep networks that matters more than the
    rule.

    Attributes:
        ridge: λ relative to the mean of the Gram's diagonal.

    References:
        derived in docs/node_selection.md; Chen, Billings, Luo (1989), Orthogonal least squares
        methods and their application to non-linear system identification.
    """

    ridge: float = 1e-8
    random: ClassVar[bool] = False
    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self) -> None:
        positive("ridge", self.ridge)

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: ClassView,
        generator: Generator,
    ) -> Choice:
        """The first classes of the elimination; scores of −∞ never come in.

        Raises:
            ValueError: a count leaves its pool, or a Gram matrix is missing or no second moment.
        """
        del generator
        checked_counts(scores, kept)
        candidates = (scores > -torch.inf).flatten().cpu()
        found = layer.once(
            (self, len(scores), candidates.numpy().tobytes()),
            lambda: forward_trace(
                consumers_of(layer), candidates=candidates, pools=len(scores), ridge=self.ridge
            ),
        )
        return Choice(mask=found.trace.mask(kept.cpu()).to(scores.device))
