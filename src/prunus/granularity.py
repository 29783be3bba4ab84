"""What is kept or removed as one unit, and which units compete for a place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from prunus.check import unknown, whole
from prunus.coupling import Heads
from prunus.layer import Layer
from prunus.parts import BLOCKS, LATER, NODES, Composition, GranularityFacts, shown

__all__ = [
    "GRANULARITIES",
    "NM",
    "Blocks",
    "Edge",
    "EdgePerRow",
    "Granularity",
    "Node",
    "pooled",
    "unpooled",
]

PARTS = ("block", "attention", "mlp")
AXES = ("channels", "columns")  # along which blocks of N:M lie


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
    """Blocks of `m` consecutive inputs of one output, of which `n` are kept.

    Attributes:
        n: units kept of every block.
        m: units of a block.
        axis: of a convolution, what stands beside each other in a block: "channels" (input
            channels at one tap, as sparse matrix units of GPUs want it) or "columns" (of the
            flattened patch, taps of a channel side by side). For other layers the two are one.
    """

    n: int
    m: int
    axis: str = field(default="channels", metadata={LATER: True})
    pools: ClassVar[str] = "block"
    __repr__ = shown

    def __post_init__(self) -> None:
        whole("m", self.m, low=1)
        whole("n", self.n, low=1, high=self.m)
        if self.axis not in AXES:
            raise unknown("axis of N:M", str(self.axis), AXES)

    def order(self, layer: Layer) -> Int[Tensor, " in"] | None:
        """Tap by tap, all input channels: columns whose blocks lie beside each other.

        Raises:
            ValueError: the number of input channels is not divisible by m.
        """
        if self.axis == "columns" or layer.taps == 1:
            return None
        width = layer.weight.shape[1]
        channels = width // layer.taps
        if channels % self.m:
            raise ValueError(
                f"{self.n}:{self.m} needs input channels divisible by {self.m}, got {channels} in "
                f"layer {layer.name!r} ({width} inputs: {channels} channels of {layer.taps} taps). "
                f"Exclude the layer, choose another m, or pool along the "
                f"whole patch with NM({self.n}, {self.m}, axis='columns')."
            )
        return torch.arange(width).view(channels, layer.taps).T.flatten()

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
        alike: "blocks" gives the same group of all blocks (names that differ in numbers alone) one
            count, as a configuration with one width for all of them wants it; None plans each.
        inexact: also cut channels over which a norm takes its statistics (LayerNorm, GroupNorm),
            although what the norm makes of the others then changes; the change is measured.
            False leaves them whole. RMSNorm needs no such leave: it is corrected exactly.
        heads: what of attention is a unit: "kv", a key and value head with all query heads that
            read it (a head, where each has its own); or "query", single query heads, the same
            number of every kv head's, which all stay. Query heads hurt less, and leave the
            cache of keys and values as large as it is.
    """

    multiple_of: int = 1
    alike: str | None = field(default=None, metadata={LATER: True})
    inexact: bool = field(default=False, metadata={LATER: True})
    heads: Heads = field(default="kv", metadata={LATER: True})
    units: ClassVar[str] = NODES
    pools: ClassVar[str] = "group"
    needs_example: ClassVar[bool] = True
    __repr__ = shown

    def __post_init__(self) -> None:
        whole("multiple_of", self.multiple_of, low=1)
        if self.alike not in (None, "blocks"):
            raise ValueError(f"`alike` must be None or 'blocks', got {self.alike!r}.")
        if not isinstance(self.inexact, bool):
            raise ValueError(f"`inexact` must be True or False, got {self.inexact!r}.")
        if self.heads not in ("kv", "query"):
            raise ValueError(f"`heads` must be 'kv' or 'query', got {self.heads!r}.")

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per group; the scores of its classes come as a single row."""
        return scores.reshape(1, -1)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pool's mask in the shape of the scores."""
        return mask.reshape(shape)


@dataclass(frozen=True)
class Blocks(Granularity):
    """Residual blocks of an `nn.ModuleList` or `nn.Sequential`, or the half of each.

    A block that goes writes zeros to its stream, which then passes it unchanged; `compact` takes
    it out of its list, with what counts it in the configuration. Blocks with a norm behind the
    sum (as BERT's) are not the identity then, and stay.

    Attributes:
        part: "block", or its "attention" or its "mlp" (which may be experts).
    """

    part: str = "block"
    units: ClassVar[str] = BLOCKS
    pools: ClassVar[str] = "chain"
    needs_example: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise unknown("part of a block", str(self.part), PARTS)

    def beside(self, recipe: Composition) -> str | None:
        """Refuses inputs of pruned predecessors: all blocks are chosen at once."""
        if recipe.inputs == "dense":
            return None
        return "Blocks are chosen all at once, so `inputs` must be 'dense', got 'pruned'."

    def pool(self, name: str, scores: Tensor) -> Tensor:
        """One pool per chain; the scores of its blocks come as a single row."""
        return scores.reshape(1, -1)

    def unpool(self, mask: Tensor, shape: tuple[int, int]) -> Tensor:
        """The pool's mask in the shape of the scores."""
        return mask.reshape(shape)


def pooled(
    granularity: Granularity, layer: Layer, scores: Float[Tensor, "out in"]
) -> Float[Tensor, "pools units"]:
    """The scores of a layer as pools of competing units."""
    order = granularity.order(layer)
    return granularity.pool(layer.name, scores if order is None else scores[:, order])


def unpooled(
    granularity: Granularity, layer: Layer, values: Shaped[Tensor, "pools units"]
) -> Shaped[Tensor, "out in"]:
    """Masks or factors of a layer's pools in the shape of its weight."""
    rows, width = layer.weight.shape
    flat = granularity.unpool(values, (rows, width))
    order = granularity.order(layer)
    return flat if order is None else flat[:, order.argsort()]


GRANULARITIES: dict[str, Callable[..., Granularity]] = {
    "Edge": Edge,
    "EdgePerRow": EdgePerRow,
    "NM": NM,
    "Node": Node,
    "Blocks": Blocks,
}
