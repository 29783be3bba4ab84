"""Residual blocks, or halves of them."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunus.check import unknown
from prunus.granularity.protocol import Granularity
from prunus.parts import BLOCKS, Composition

__all__ = ["Blocks"]

PARTS = ("block", "attention", "mlp")


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
    needs_batches: ClassVar[bool] = True

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
