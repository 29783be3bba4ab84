"""Channel classes: rows of what makes them and columns of what reads them."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from prunus.check import whole
from prunus.coupling import Heads
from prunus.granularity.protocol import Granularity
from prunus.parts import LATER, NODES, shown

__all__ = ["Node"]


@dataclass(frozen=True)
class Node(Granularity):
    """Channel classes of a group, removed from all its producers and consumers.

    Attributes:
        multiple_of: the kept classes of every group are a multiple of this (or all of them), as
            hardware likes it.
        alike: "blocks" gives the same group of all blocks (names that differ in numbers alone) one
            count, as a configuration with one width for all of them wants it; None plans each.
        inexact: also cut channels over which a norm takes its statistics (LayerNorm, GroupNorm),
            although what the norm makes of the others then changes; the change is measured,
            and budgets of a gap or a drop are about the compact network. False leaves them whole.
            RMSNorm needs no such leave: it is corrected exactly.
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
