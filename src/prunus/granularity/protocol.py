"""How a granularity is called, and how a layer's columns fall into its pools."""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from prunus.layer import Layer
from prunus.parts import GranularityFacts

__all__ = ["Granularity", "pooled", "unpooled"]


@runtime_checkable
class Granularity(GranularityFacts, Protocol):
    """How a layer's scores fall into pools of competing units."""

    def pool(self, name: str, scores: Float[Tensor, "out in"]) -> Float[Tensor, "pools units"]: ...

    def unpool(
        self, mask: Bool[Tensor, "pools units"], shape: tuple[int, int]
    ) -> Bool[Tensor, "out in"]: ...


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
