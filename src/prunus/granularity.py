"""What is kept or removed as one unit, and which units compete for a place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from prunus.check import whole
from prunus.parts import LATER, NODES, Composition, GranularityFacts, shown

__all__ = ["GRANULARITIES", "NM", "Edge", "EdgePerRow", "Granularity", "Node"]


@runtime_checkable
class Granularity(GranularityFacts, Protocol):
    """How a layer's scores fall into pools of competing units."""

    def pool(self, name: str, scores: Float[Tensor, "out in"]) -> Float[Tensor, "pools units"]: ...

    def unpool(
        self, mask: Bool[Tensor, "pools units"], shape: tuple[int, int]
    ) -> Bool[Tensor, "out in"]: ...


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


@dataclass(frozen=True)
class NM(Granularity):
    """Blocks of `m` consecutive inputs of one output, of which `n` are kept."""

    n: int
    m: int
    pools: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        whole("m", self.m, low=1)
        whole("n", self.n, low=1, high=self.m)

    @property
    def fixed(self) -> tuple[int, int]:
        """n of m, whatever the budget."""
        return self.n, self.m

    def beside(self, recipe: Composition) -> str | None:
        """Refuses an allocation that would share what is fixed."""
        if recipe.allocation.equal_shares:
            return None
        return (
            f"{self!r} fixes every count, so `allocation` must be Uniform(), got "
            f"{recipe.allocation!r}."
        )

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
class Node(Granularity):
    """Channel classes of a group, removed from all its producers and consumers.

    Attributes:
        multiple_of: the kept classes of every group are a multiple of this (or all of them), as
            hardware likes it.
        inexact: also cut channels over which a norm takes its statistics (LayerNorm, GroupNorm),
            although what the norm makes of the others then changes; the change is measured.
            False leaves them whole. RMSNorm needs no such leave: it is corrected exactly.
    """

    multiple_of: int = 1
    inexact: bool = field(default=False, metadata={LATER: True})
    units: ClassVar[str] = NODES
    pools: ClassVar[str] = "group"
    needs_example: ClassVar[bool] = True
    __repr__ = shown

    def __post_init__(self) -> None:
        whole("multiple_of", self.multiple_of, low=1)
        if not isinstance(self.inexact, bool):
            raise ValueError(f"`inexact` must be True or False, got {self.inexact!r}.")

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per group; the scores of its classes come as a single row."""
        return scores.reshape(1, -1)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pool's mask in the shape of the scores."""
        return mask.reshape(shape)


GRANULARITIES: dict[str, Callable[..., Granularity]] = {
    "Edge": Edge,
    "EdgePerRow": EdgePerRow,
    "NM": NM,
    "Node": Node,
}
