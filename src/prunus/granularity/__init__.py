"""What is kept or removed as one unit, and which units compete for a place."""

from collections.abc import Callable

from prunus.granularity.blocks import Blocks
from prunus.granularity.edges import Edge, EdgePerRow
from prunus.granularity.experts import Experts
from prunus.granularity.n_of_m import NM
from prunus.granularity.node import Node
from prunus.granularity.protocol import Granularity, pooled, unpooled

__all__ = [
    "GRANULARITIES",
    "NM",
    "Blocks",
    "Edge",
    "EdgePerRow",
    "Experts",
    "Granularity",
    "Node",
    "pooled",
    "unpooled",
]


GRANULARITIES: dict[str, Callable[..., Granularity]] = {
    "Edge": Edge,
    "EdgePerRow": EdgePerRow,
    "NM": NM,
    "Node": Node,
    "Blocks": Blocks,
    "Experts": Experts,
}
