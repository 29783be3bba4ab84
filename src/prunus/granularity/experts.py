"""Experts of mixture layers."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.check import whole
from prunus.granularity.protocol import Granularity
from prunus.parts import EXPERTS, Composition

__all__ = ["Experts"]


@dataclass(frozen=True)
class Experts(Granularity):
    """Experts of layers that send each token to a few of them; as many of every layer.

    An expert that goes is one whose router logit is −∞: its tokens go to others, whose gates are
    renormalised. That is no matter of zeros, which would still be sent tokens, so that the masked
    network's routers are barred as well; `compact` cuts the experts and the router's rows out.

    Attributes:
        multiple_of: the kept experts of a layer are a multiple of this (or all of them), as
            processors that share them out want it.
    """

    multiple_of: int = 1
    units: ClassVar[str] = EXPERTS
    pools: ClassVar[str] = "mixture"
    needs_example: ClassVar[bool] = True
    needs_batches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("multiple_of", self.multiple_of, low=1)

    def beside(self, recipe: Composition) -> str | None:
        """Refuses inputs of pruned predecessors: all layers keep as many, chosen at once."""
        if recipe.inputs == "dense":
            return None
        return "Experts are chosen all at once, so `inputs` must be 'dense', got 'pruned'."

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per layer; the scores of its experts come as a single row."""
        return scores.reshape(1, -1)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pool's mask in the shape of the scores."""
        return mask.reshape(shape)
