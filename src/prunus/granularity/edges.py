"""Single weights, which compete in their layer or in their row."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.granularity.protocol import Granularity

__all__ = ["Edge", "EdgePerRow"]


@dataclass(frozen=True)
class Edge(Granularity):
    """Single weights; all weights of a layer compete."""

    pools: ClassVar[str] = "layer"

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """All scores in one pool."""
        return scores.reshape(1, -1)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pool's mask in the shape of the weight."""
        return mask.reshape(shape)


@dataclass(frozen=True)
class EdgePerRow(Granularity):
    """Single weights; the weights into one output compete with each other."""

    pools: ClassVar[str] = "row"

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per output."""
        return scores

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pools' masks in the shape of the weight."""
        return mask.reshape(shape)
