"""Before any weight is seen, the other way round: from a limit on the gap to counts and widths."""

import math
from collections.abc import Sequence

from prunus.check import fraction, positive, whole
from prunus.theory.gap.activations import Activation
from prunus.theory.gap.apriori import Widths, product_route
from prunus.theory.gap.laws import Law, Method
from prunus.theory.gap.network import LayerShape, NormRule, norm_bound, random_network

__all__ = ["largest_pruned_count", "minimal_width"]


def largest_pruned_count(
    widths: Widths,
    layer: int,
    limit: float,
    *,
    laws: str | Law | Sequence[Law] = "he_uniform",
    activations: str | Activation | Sequence[str | Activation] = "relu",
    method: Method = "random",
    delta: float = 0.05,
    radius: float = 1.0,
) -> int:
    """How many weights one layer may lose, the others whole: max{k : bound(k) ≤ limit}.

    By bisection on whole numbers (the bound does not fall with k) over the product route.
    """
    positive("limit", limit, zero=True)
    count = len(widths) - (0 if isinstance(widths[0], LayerShape) else 1)
    at = whole("layer", layer, low=0, high=count - 1)
    network = random_network(widths, 1.0, laws=laws, activations=activations, method=method)
    total = network.shapes[at].total

    def bound(k: int) -> float:
        densities = [1.0] * count
        densities[at] = 1 - k / total
        pruned = random_network(
            network.shapes,
            densities,
            laws=network.laws,
            activations=network.activations,
            method=method,
        )
        return product_route(pruned, delta, radius).value

    low, high = 0, total + (method != "random_rescaled")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bound(middle) <= limit else (low, middle)
    return low


def minimal_width(
    depth: int,
    limit: float,
    exponent: float,
    *,
    method: Method = "random",
    delta: float = 0.05,
    radius: float = 1.0,
    law: str = "qk_uniform",
    activation: str = "relu",
    largest: int = 10**6,
    rule: NormRule = norm_bound,
) -> tuple[int, float]:
    """Least width d at which pruning ⌊N^{1−α}⌋ of N = d² weights per layer costs at most ε.

    Doubling, then bisection, on the product route. For a *constant share* of pruned weights no
    width suffices: ‖D‖ tends to 2 s √(q d), not to 0.

    Args:
        depth: l, the number of layers, all d × d.
        limit: ε on the largest gap over the ball.
        exponent: α in (0, 1).
        method: how the layers are pruned.
        delta: failure probability.
        radius: of the ball around 0.
        law: preset of the weights.
        activation: of the hidden layers.
        largest: width beyond which the search gives up.
        rule: thresholds of the layers' norms; the engine's best by default.

    Returns:
        the width, and the bound at twice the width.

    Raises:
        ValueError: not reached at width `largest`.
    """
    layers = whole("depth", depth, low=1)
    positive("limit", limit)
    fraction("exponent", exponent)

    def bound(d: int) -> float:
        pruned = math.floor((d * d) ** (1 - exponent) * (1 + 1e-12))
        density = 1 - pruned / (d * d)
        network = random_network(
            [d] * (layers + 1), density, laws=law, activations=activation, method=method
        )
        return product_route(network, delta, radius, rule=rule).value

    high = 2
    while bound(high) > limit:
        high *= 2
        if high > largest:
            raise ValueError(f"no width up to {largest} brings the bound to {limit!r}.")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bound(middle) <= limit else (middle, high)
    return high, bound(2 * high)
