"""What is kept or removed as one unit, and which units compete for a place."""

from dataclasses import dataclass, fields
from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from prunus.check import whole

__all__ = ["GRANULARITIES", "NM", "Edge", "EdgePerRow", "Granularity", "Node"]


class Granularity(Protocol):
    """How a layer's scores fall into pools of competing units."""

    def pool(self, name: str, scores: Float[Tensor, "out in"]) -> Float[Tensor, "pools units"]: ...

    def unpool(
        self, mask: Bool[Tensor, "pools units"], shape: tuple[int, int]
    ) -> Bool[Tensor, "out in"]: ...


@dataclass(frozen=True)
class Edge:
    """Single weights; all weights of a layer compete."""

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """All scores in one pool."""
        return scores.reshape(1, -1)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pool's mask in the shape of the weight."""
        return mask.reshape(shape)


@dataclass(frozen=True)
class EdgePerRow:
    """Single weights; the weights into one output compete with each other."""

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per output."""
        return scores

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pools' masks in the shape of the weight."""
        return mask.reshape(shape)


@dataclass(frozen=True)
class NM:
    """Blocks of `m` consecutive inputs of one output, of which `n` are kept."""

    n: int
    m: int

    def __post_init__(self) -> None:
        whole("m", self.m, low=1)
        whole("n", self.n, low=1, high=self.m)

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per block.

        Raises:
            ValueError: the layer's input width is not divisible by m.
        """
        width = scores.shape[1]
        if width % self.m:
            raise ValueError(
                f"{self.n}:{self.m} needs input widths divisible by {self.m}, got {width} in layer "
                f"{name!r}. Exclude the layer, or choose another m."
            )
        return scores.reshape(-1, self.m)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The blocks' masks in the shape of the weight."""
        return mask.reshape(shape)


@dataclass(frozen=True)
class Node:
    """Channel classes of a group, removed from all its producers and consumers.

    Attributes:
        multiple_of: the kept classes of every group are a multiple of this (or all of them), as
            hardware likes it.
        inexact: also cut channels over which a norm takes its statistics (LayerNorm, GroupNorm),
            although what the norm makes of the others then changes; the change is measured.
            False leaves them whole. RMSNorm needs no such leave: it is corrected exactly.
    """

    multiple_of: int = 1
    inexact: bool = False

    def __post_init__(self) -> None:
        whole("multiple_of", self.multiple_of, low=1)
        if not isinstance(self.inexact, bool):
            raise ValueError(f"`inexact` must be True or False, got {self.inexact!r}.")

    def __repr__(self) -> str:
        # Fields of later versions show only where they are set: a recipe's digest stays.
        later = [f for f in fields(self) if f.name != "multiple_of"]
        shown = [
            f"{f.name}={value!r}" for f in later if (value := getattr(self, f.name)) != f.default
        ]
        return f"Node({', '.join([f'multiple_of={self.multiple_of}', *shown])})"

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per group; the scores of its classes come as a single row."""
        return scores.reshape(1, -1)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pool's mask in the shape of the scores."""
        return mask.reshape(shape)


GRANULARITIES = {"Edge": Edge, "EdgePerRow": EdgePerRow, "NM": NM, "Node": Node}
