"""Scores of whole residual blocks: what each does to its stream, or to the network's output."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import unknown, whole
from prunus.nodes import BlockView
from prunus.parts import BLOCKS, Composition
from prunus.scores.protocol import Score

__all__ = ["BlockCosine", "BlockGap", "BlockShapley"]

GAPS = ("kl", "mse")


@dataclass(frozen=True)
class BlockCosine(Score):
    """How far a block turns its stream: 1 − E cos(x_l, x_{l+1}) per token; one pass.

    References:
        Men et al. (2024), ShortGPT: layers in large language models are more redundant than you
        expect, Eq. 1 (block influence).
    """

    serves: ClassVar[tuple[str, ...]] = (BLOCKS,)

    def beside(self, recipe: Composition) -> str | None:
        """Refuses halves, whose streams no module takes and gives."""
        if recipe.granularity.part == "block":
            return None
        return (
            f"BlockCosine() compares the stream before and behind whole blocks, so `granularity` "
            f"must be Blocks(), got {recipe.granularity!r}. Use BlockGap() for halves."
        )

    def blocks(self, view: BlockView) -> Float[Tensor, " blocks"]:
        """Between 0 (the direction stays) and 2."""
        return view.turned()


@dataclass(frozen=True)
class BlockGap(Score):
    """Greedy: ever the block goes without which the output changes least, given those gone before.

    Scores are places in that order: 0 goes first. It takes a pass over the data for each block
    that is left at each removal. Those that are not removed are ordered by the last pass.

    Attributes:
        gap: "kl", E KL(p ‖ p′) of the softmax over the output's last axis, in nats; "mse", the
            mean squared difference of outputs.

    References:
        Song et al. (2024), SLEB: streamlining LLMs through redundancy verification and elimination
        of transformer blocks, Algorithm 1, with another gap.
    """

    gap: str = "kl"
    serves: ClassVar[tuple[str, ...]] = (BLOCKS,)

    def __post_init__(self) -> None:
        if self.gap not in GAPS:
            raise unknown("gap of block scores", str(self.gap), GAPS)

    def blocks(self, view: BlockView) -> Float[Tensor, " blocks"]:
        """0, 1, 2, … in the order of removal."""
        order: list[int] = []
        left = list(range(len(view.blocks)))
        rest: list[int] = left
        for _ in range(max(1, min(view.going, len(left) - 1))):
            gaps = {i: view.gap((*order, i), self.gap) for i in left}
            rest = sorted(left, key=lambda i: gaps[i])
            order.append(rest[0])
            left.remove(rest[0])
        scores = torch.empty(len(view.blocks), dtype=torch.float64)
        for place, i in enumerate((*order, *rest[1:])):
            scores[i] = place
        return scores


@dataclass(frozen=True)
class BlockShapley(Score):
    """The mean rise of the gap when a block goes after a random set of others.

    For k blocks to go the set has 0 to k − 1 others, each size equally often: the Shapley value
    of removal games of at most k players. With k = 1 it is the output gap of the block alone.

    Attributes:
        orders: random sets drawn for each block.
        gap: see `BlockGap`.

    References:
        Shapley (1953), A value for n-person games; truncated to k players, derived here.
    """

    orders: int = 8
    gap: str = "kl"
    serves: ClassVar[tuple[str, ...]] = (BLOCKS,)

    def __post_init__(self) -> None:
        whole("orders", self.orders, low=1)
        if self.gap not in GAPS:
            raise unknown("gap of block scores", str(self.gap), GAPS)

    def blocks(self, view: BlockView) -> Float[Tensor, " blocks"]:
        """Means of the draws, in units of the gap."""
        return self.drawn(view).mean(1)

    def drawn(self, view: BlockView) -> Float[Tensor, "blocks orders"]:
        """Every draw, from whose spread the standard error of the mean follows."""
        known: dict[frozenset[int], float] = {frozenset(): 0.0}

        def gap(gone: frozenset[int]) -> float:
            if gone not in known:
                known[gone] = view.gap(sorted(gone), self.gap)
            return known[gone]

        count = len(view.blocks)
        most = max(1, min(view.going, count - 1))
        found = torch.empty(count, self.orders, dtype=torch.float64)
        for i in range(count):
            others = torch.tensor([j for j in range(count) if j != i])
            for draw in range(self.orders):
                size = int(torch.randint(most, (), generator=view.generator))
                shuffled = others[torch.randperm(len(others), generator=view.generator)]
                before = frozenset(shuffled[:size].tolist())
                found[i, draw] = gap(before | {i}) - gap(before)
        return found
