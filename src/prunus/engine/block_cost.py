"""What a network costs with so many of its residual blocks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prunus.cost import Anatomy, Cost, smaller_cost
from prunus.engine.unit import Kept
from prunus.surgery.depth import Skippable

__all__ = ["BlockCost"]


@dataclass(frozen=True, eq=False)
class BlockCost:
    """What a network costs with so many blocks of each chain, each counted as their mean.

    Multiply-adds between computed values are left out of a plan; the compact network is counted.

    Attributes:
        sizes: of the network.
        chains: the blocks, or halves, that may go.
        refused: {block: reason} of the others.
    """

    sizes: Anatomy
    chains: Mapping[str, Sequence[Skippable]]
    refused: Mapping[str, str]
    nodes: bool = True
    multiple_of: int = 1
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]:
        """The blocks of each chain."""
        return {name: tuple(b.name for b in blocks) for name, blocks in self.chains.items()}

    def entries(self, parts: Sequence[Skippable]) -> dict[str, int]:
        """{parameter: its entries} of what goes with some parts."""
        homes = [f"{home}." for part in parts for home in (part.owners or (part.name,))]
        return {
            name: math.prod(self.sizes.shapes[name])
            for name in self.sizes.parameters
            if any(name.startswith(home) for home in homes)
        }

    def __call__(self, kept: Kept) -> Cost:
        """The cost of a plan."""
        whole = smaller_cost(self.sizes, self.sizes.shapes, ())
        uses = {} if self.sizes.operations is None else self.sizes.operations.uses
        every, gone, saved = 0, 0.0, 0.0
        for name, blocks in self.chains.items():
            own = self.entries(blocks)
            share = 1 - int(kept[name].sum()) / len(blocks)
            every += sum(own.values())
            gone += share * sum(own.values())
            saved += share * sum(n * uses.get(p, 0.0) for p, n in own.items())
        width = whole.bytes / max(1, whole.parameters)
        return Cost(
            density=1 - gone / every if every else 1.0,
            model_density=1 - gone / max(1, whole.parameters),
            parameters=round(whole.parameters - gone),
            macs=None if whole.macs is None else round(whole.macs - saved),
            bytes=round(whole.bytes - gone * width),
        )
