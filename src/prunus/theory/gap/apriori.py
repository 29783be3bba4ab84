"""Before any weight is seen: bounds on the largest gap over a ball."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.check import fraction, positive
from prunus.later import Later
from prunus.theory.gap.activations import Activation
from prunus.theory.gap.concentration import FROBENIUS
from prunus.theory.gap.laws import Law, Method
from prunus.theory.gap.layer_norms import layer_norm
from prunus.theory.gap.network import (
    LayerShape,
    Network,
    NormRule,
    global_threshold,
    norm_bound,
    pruned_count,
    random_network,
    threshold_of,
)
from prunus.theory.gap.statement import Statement, judge

__all__ = [
    "gaussian_scale",
    "product_route",
    "sup_bound",
    "width_route",
]

special = Later("scipy.special")

Widths = Sequence[int] | Sequence[LayerShape]
WEAK = (
    "δ is too small for a law known by its fourth moment: only the energy of the matrices bounds "
    "their norms"
)


@dataclass(frozen=True, kw_only=True)
class RouteValue:
    """What one route proves.

    Attributes:
        value: bound on the gap.
        trivial: bound on ‖F‖ + ‖f‖ from the same events.
        per_layer: (w, v, Δ) of each layer.
    """

    value: float
    trivial: float
    per_layer: tuple[tuple[float, float, float], ...]


def sup_bound(
    widths: Widths,
    densities: float | Sequence[float],
    *,
    laws: str | Law | Sequence[Law] = "he_uniform",
    activations: str | Activation | Sequence[str | Activation] = "relu",
    method: Method = "random",
    delta: float = 0.05,
    radius: float = 1.0,
    scope: str = "layer",
    biases: Sequence[float] | None = None,
    route: str = "best",
) -> Statement:
    """With probability ≥ 1 − δ over weights and masks, sup_{‖x‖≤B} ‖F(x) − f(x)‖ ≤ value.

    The least of the product route and, for plain networks without biases, the width route; each
    holds with probability ≥ 1 − δ and the choice is made before anything is drawn. The probability
    is over *initial* weights: nothing follows for a trained network.

    Args:
        widths: d_0, …, d_l, or the layers' shapes.
        densities: share of kept weights, one or one per layer (one for scope "global").
        laws: preset, law, or one law per layer; symmetric for magnitude pruning.
        activations: of the hidden layers.
        method: how the network is pruned.
        delta: failure probability δ.
        radius: B of the ball, centred at 0.
        scope: "layer", or "global": magnitude pruning with one threshold for all layers.
        biases: Euclidean norms of the biases, alike in both networks.
        route: "best", "product" or "width".

    References:
        Qian & Klabjan (2021), A probabilistic approach to neural network pruning, for the
        question; constants, engine and width route derived in docs/gap.md.
    """
    network = random_network(widths, densities, laws=laws, activations=activations, method=method)
    fraction("delta", delta)
    ball = positive("radius", radius)
    if route not in ("best", "product", "width"):
        raise ValueError(f"`route` must be best, product or width, got {route!r}.")
    if scope not in ("layer", "global"):
        raise ValueError(f"`scope` must be layer or global, got {scope!r}.")
    if scope == "global":
        if method != "magnitude":
            raise ValueError("`scope='global'` belongs to magnitude pruning.")
        if len(set(network.densities)) != 1:
            raise ValueError("`scope='global'` takes one density for the whole network.")
        if route == "width":
            raise ValueError(
                "the width route needs independent layers, which a global threshold couples. Use "
                "route='product', or the prediction."
            )
    values: dict[str, RouteValue] = {}
    if route != "width":
        values["product"] = product_route(network, delta, ball, scope=scope, biases=biases)
    if scope == "layer" and route != "product":
        obstacle = _width_obstacle(network, biases)
        if obstacle is None:
            values["width"] = width_route(network, delta, ball)
        elif route == "width":
            raise ValueError(f"the width route needs {obstacle}. Use route='product'.")
    best = min(values, key=lambda name: values[name].value)
    found = values[best]
    vacuous, reason = judge(found.value, found.trivial, None)
    if not vacuous and _energy_only(network, delta):
        vacuous, reason = True, WEAK
    assumptions = ["weights are drawn independently from the stated laws; not trained weights"]
    if not all(law.symmetric for law in network.laws):
        assumptions.append(
            "asymmetric laws, through symmetric ones of twice the variance; random masks have "
            "independent entries"
        )
    return Statement(
        kind="sup",
        status="RIG",
        level="L1",
        value=found.value,
        route=f"{best} route",
        delta=delta,
        ledger=_ledger(network, delta, best, scope),
        trivial=found.trivial,
        vacuous=vacuous,
        reason=reason,
        assumptions=tuple(assumptions),
    )


def _energy_only(network: Network, delta: float) -> bool:
    """Whether some threshold is no better than Markov's inequality on the Frobenius norm."""
    share = delta / ((3 + (network.method == "magnitude")) * len(network.shapes))
    return any(
        law.kind == "moments"
        and math.isinf(law.bound)
        and layer_norm(shape.outputs, shape.inputs, law, share, part="dense").route == FROBENIUS
        for shape, law in zip(network.shapes, network.laws, strict=True)
    )


def _ledger(
    network: Network, delta: float, route: str, scope: str
) -> tuple[tuple[str, float], ...]:
    count, magnitude = len(network.shapes), network.method == "magnitude"
    if scope == "global":
        share = delta / (2 * count + 1)
        events = [(f"‖{m}‖ of layer {i}", share) for i in range(count) for m in "WD"]
        return (*events, ("threshold of all layers", share))
    if route == "width":
        share = delta / (9 * count + magnitude * count)
        events = [(f"9 events of layer {i}", 9 * share) for i in range(count)]
    else:
        share = delta / ((4 if magnitude else 3) * count)
        events = [(f"‖{m}‖ of layer {i}", share) for i in range(count) for m in "WVD"]
    if magnitude:
        events += [(f"threshold of layer {i}", share) for i in range(count)]
    return tuple(events)


def _norms(
    network: Network, share: float, *, scope: str = "layer", rule: NormRule = norm_bound
) -> tuple[tuple[float, float, float], ...]:
    """(w, v, Δ) of every layer at δ_e = share."""
    common = None
    if scope == "global":
        pruned = sum(pruned_count(s, network.densities[0]) for s in network.shapes)
        common = global_threshold(network, pruned, share)
    found = []
    for shape, law, density in zip(network.shapes, network.laws, network.densities, strict=True):
        method = network.method
        dense = rule(shape, law, share, part="dense")
        if method != "magnitude":
            pruned_norm = rule(shape, law, share, method, density, "kept")
            difference = rule(shape, law, share, method, density, "pruned")
            if density == 1:
                pruned_norm = dense
        elif common is not None:
            difference = rule(shape, law, share, method, 0.0, "pruned", common)
            pruned_norm = dense + difference
        else:
            cut = threshold_of(shape, law, density, share)
            difference = rule(shape, law, share, method, 0.0, "pruned", cut)
            pruned_norm = dense
        found.append((dense, pruned_norm, difference))
    return tuple(found)


def product_route(
    network: Network,
    delta: float,
    radius: float,
    *,
    scope: str = "layer",
    biases: Sequence[float] | None = None,
    rule: NormRule = norm_bound,
) -> RouteValue:
    """e_i = L_i min(v e + Δ H, w e + Δ Ĥ) through the layers, every norm a threshold of `rule`."""
    count = len(network.shapes)
    if biases is not None and len(biases) != count:
        raise ValueError(f"`biases` must have {count} entries, one per layer, got {len(biases)}.")
    events = 2 * count + 1 if scope == "global" else (3 + (network.method == "magnitude")) * count
    norms = _norms(network, delta / events, scope=scope, rule=rule)
    return RouteValue(per_layer=norms, **_recursion(network, norms, radius, biases))


def _recursion(
    network: Network,
    norms: Sequence[tuple[float, float, float]],
    radius: float,
    biases: Sequence[float] | None = None,
) -> dict[str, float]:
    dense, pruned, gap = radius, radius, 0.0
    count = len(norms)
    for i, (w, v, d) in enumerate(norms):
        shape = network.shapes[i]
        offset = 0.0 if biases is None else float(biases[i])
        gap = min(v * gap + d * dense, w * gap + d * pruned)
        dense, pruned = w * dense + offset, v * pruned + offset
        if i + 1 < count:
            phi, root = network.activations[i], math.sqrt(shape.units)
            lip, zero = phi.lipschitz, phi.at_zero * root
            gap = lip * gap
            dense = min(lip * dense + zero, phi.sup * root)
            pruned = min(lip * pruned + zero, phi.sup * root)
        gain = shape.gain
        gap, dense, pruned = gain * gap, gain * dense, gain * pruned
        gap = min(gap, dense + pruned)
    return {"value": gap, "trivial": dense + pruned}


def _width_obstacle(network: Network, biases: Sequence[float] | None) -> str | None:
    if biases is not None and any(b != 0 for b in biases):
        return "no biases"
    for shape in network.shapes:
        if shape.grid is not None or shape.gain != 1:
            return "matrices only"
    for phi in network.activations:
        if phi.at_zero != 0 or phi.low < 0 or phi.high > 1:
            return f"activations with φ(0) = 0 and slopes in [0, 1], not {phi.name}"
    for law in network.laws:
        if law.gaussian_lipschitz is None or not law.symmetric:
            return "uniform, normal or truncated normal laws"
    return None


@functools.cache
def gaussian_scale(law: Law) -> float:
    """χ: standard deviation of a normal law that dominates the law in convex order.

    Exact for the uniform law, (K/2) √(π/2). For a truncated normal law the least χ whose stop-loss
    values E (w − t)₊ are above the law's at 400 points, plus 1e-3 of it.
    """
    if law.kind == "uniform":
        return law.bound / 2 * math.sqrt(math.pi / 2)
    assert law.parent is not None
    if law.kind == "normal":
        return law.parent
    t = np.linspace(0, law.bound, 402)[1:-1]
    s, cut = law.parent, law.bound
    inside = math.erf(cut / s / math.sqrt(2))
    tail = special.ndtr(-t / s) - special.ndtr(-cut / s)
    loss = (s * (_bell(t / s) - _bell(np.array(cut / s))) - t * tail) / inside

    def dominates(scale: float) -> bool:
        normal_loss = scale * _bell(t / scale) - t * special.ndtr(-t / scale)
        mean = scale * _bell(np.zeros(1))[0]  # at t = 0
        first = s * (_bell(np.zeros(1))[0] - float(_bell(np.array(cut / s)))) / inside
        return bool((normal_loss >= loss).all() and mean >= first)

    low, high = math.sqrt(law.variance), s  # the parent dominates: truncation shrinks slopes
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if dominates(middle) else (middle, high)
    return min(high * (1 + 1e-3), s)


def _bell(x: Any) -> Any:
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def width_route(network: Network, delta: float, radius: float) -> RouteValue:
    """Radius and Gaussian width of the reachable sets, layer by layer (Chevet-Gordon recursion).

    Grows like l c^l where products of norms grow like (2c)^l: the better route for wide networks
    of depth 3 or more.

    References:
        Gordon (1985), Israel J. Math. 50; Chevet (1978); the recursion derived in docs/gap.md.
    """
    count, magnitude = len(network.shapes), network.method == "magnitude"
    share = delta / (9 * count + magnitude * count)
    norms = _norms(network, share)
    tail = math.sqrt(-2 * math.log(share))
    size = size_p = radius
    width = width_p = radius * math.sqrt(network.shapes[0].inputs)
    gap = gap_width = 0.0
    for i, (w, v, d) in enumerate(norms):
        law, density = network.laws[i], network.densities[i]
        chi, lipschitz = gaussian_scale(law), law.gaussian_lipschitz or 0.0
        root, c = math.sqrt(network.shapes[i].outputs), lipschitz * tail
        a = 1 / density if network.method == "random_rescaled" else 1.0
        hidden = i + 1 < count
        phi = network.activations[i] if hidden else None
        k = math.sqrt(0.5) if phi is not None and phi.name == "relu" else 1.0
        cap = phi.sup * root if phi is not None else math.inf
        extra = d if magnitude else 0.0

        through_pruned = min(v * gap, a * (chi * (root * gap + gap_width) + c * gap) + extra * gap)
        through_dense = min(w * gap, chi * (root * gap + gap_width) + c * gap)
        new_gap = min(through_pruned + d * size, through_dense + d * size_p)

        new_size = min(w * size, chi * (k * root * size + width) + c * size, cap)
        engine = a * (chi * (k * root * size_p + width_p) + c * size_p) + extra * size_p
        new_size_p = min(v * size_p, engine, cap)
        width = min(chi * root * width + c * root * size, root * new_size)
        engine = a * (chi * root * width_p + c * root * size_p) + root * extra * size_p
        width_p = min(engine, root * new_size_p)
        size, size_p = new_size, new_size_p
        gap = min(new_gap, size + size_p)
        gap_width = min(root * gap, width + width_p)
    return RouteValue(value=gap, trivial=size + size_p, per_layer=norms)
