"""Optimal brain surgeon as a score: what each removal costs the network's outputs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import positive
from prunus.elimination import ObsTrace, layer_traces
from prunus.layer import Layer
from prunus.parts import EDGES
from prunus.scores.protocol import Score

__all__ = ["ObsPrice", "trace_prices"]


def trace_prices(trace: ObsTrace) -> Float[Tensor, "out in"]:
    """Running maxima of a trace's losses by weight, made to rise strictly along each row's order.

    The best k of a row are then the trace's own mask of k weights. The factor 1 + t · 2⁻⁴⁰ of step
    t keeps weights apart whose maximum is the same; where that is 0, the smallest numbers do.
    """
    steps = torch.arange(trace.order.shape[1], dtype=torch.float64)
    rising = trace.loss.cummax(1).values * (1 + steps * 2.0**-40) + steps * 1e-300
    return torch.empty_like(rising).scatter_(1, trace.order, rising)


@dataclass(frozen=True)
class ObsPrice(Score):
    """b_h times what a weight's removal costs output h of its layer once the others make up for it.

    Each row loses its weights in the order of optimal brain surgeon; a weight's price is the
    largest loss up to its own, which is what a global share of the budget compares. b_h = E Σ_o
    (∂F_o/∂z_h)² carries it from the layer's output to the network's, as in K-FAC's blocks, and does
    not change the order inside a row. With `Global()` and least squares of the same ridge, the
    weights are those of the elimination.

    Attributes:
        ridge: λ relative to the mean of the Gram's diagonal.
        slope: False leaves b out, as Frantar and Alistarh compare losses of layers.

    References:
        Hassibi and Stork (1993), Optimal brain surgeon; Frantar and Alistarh (2022), Optimal brain
        compression, section 4; b derived in docs/second_order.md.
    """

    ridge: float = 1e-4
    slope: bool = True
    serves: ClassVar[tuple[str, ...]] = (EDGES,)

    def __post_init__(self) -> None:
        positive("ridge", self.ridge)
        if not isinstance(self.slope, bool):
            raise ValueError(f"`slope` must be True or False, got {self.slope!r}.")

    @property
    def statistics(self) -> tuple[str, ...]:
        """The Gram matrix, and b where it counts."""
        return ("gram", "slope") if self.slope else ("gram",)

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """Prices in squared output units, float64."""
        layer.require(*self.statistics)
        prices = torch.cat(
            [
                trace_prices(trace)
                for trace in layer_traces(layer, ridge=self.ridge, least=[0] * layer.groups)
            ]
        )
        if self.slope:
            prices = layer.statistic("slope").cpu()[:, None] * prices
        return prices.to(layer.weight.device)
