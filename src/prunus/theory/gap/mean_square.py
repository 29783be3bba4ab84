"""Before any weight is seen, at one input: the mean square gap, bounded and predicted."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunus.check import fraction, positive
from prunus.theory.gap.activations import Activation
from prunus.theory.gap.laws import Law, Method, energy_below, quantile
from prunus.theory.gap.network import (
    LayerShape,
    Network,
    global_densities,
    pruned_count,
    random_network,
)
from prunus.theory.gap.statement import Statement, judge

__all__ = [
    "kept_energy",
    "markov_gap",
    "mean_field",
    "mean_square_bound",
    "mean_square_plan",
]

Widths = Sequence[int] | Sequence[LayerShape]


def kept_energy(shape: LayerShape, law: Law, method: Method, density: float) -> float:
    """ρ: expected share of Σ w² that stays; the density for random masks."""
    if method != "magnitude":
        return density
    return 1 - energy_below(law, shape.total, pruned_count(shape, density))


def _second_moments(
    network: Network, norm: float, bias_variances: Sequence[float], *, exact: bool
) -> tuple[float, float]:
    """E‖F − f‖² bound and E‖F‖² bound by the recursion of the theorem."""
    rescaled = network.method == "random_rescaled"
    size = size_p = norm * norm
    gap = 0.0
    count = len(network.shapes)
    for i, (shape, law) in enumerate(zip(network.shapes, network.laws, strict=True)):
        rho = kept_energy(shape, law, network.method, network.densities[i])
        kappa = 1.0
        if i + 1 < count:
            phi = network.activations[i]
            kappa = phi.kappa if law.symmetric else phi.lipschitz**2
        kappa *= shape.gain**2
        scale = kappa * shape.spread * law.variance
        offset = kappa * shape.units * bias_variances[i]
        if rescaled:
            gap = scale * (gap + (1 / rho - 1) * size_p)
            size_p = scale / rho * size_p + offset
        else:
            gap = scale * ((1 - rho) * size + rho * gap)
        size = scale * size + offset
    return gap, size


def mean_square_bound(
    widths: Widths,
    densities: float | Sequence[float],
    *,
    laws: str | Law | Sequence[Law] = "he_uniform",
    activations: str | Activation | Sequence[str | Activation] = "relu",
    method: Method = "random",
    norm: float = 1.0,
    bias_variances: Sequence[float] | None = None,
    scope: str = "layer",
    relative: bool = False,
) -> Statement:
    """√E ‖F(x) − f(x)‖² ≤ value at any fixed input, over weights and mask.

    Unscaled masks: E_i = κ₂ d_i s² ((1 − ρ) H_{i−1} + ρ E_{i−1}); rescaled:
    E_i = κ₂ d_i s² (E_{i−1} + (1/p − 1) Ĥ_{i−1}). Without biases
    ‖x‖² ∏ d_i s² ∏ κ₂ (1 − ∏ ρ_i), so a ReLU network's relative gap is at most 1 − ∏ ρ_i.

    Args:
        widths: d_0, …, d_l, or the layers' shapes.
        densities: share of kept weights, one or one per layer.
        laws: of zero mean; symmetric for magnitude pruning.
        activations: with φ(0) = 0.
        method: how the network is pruned.
        norm: ‖x‖.
        bias_variances: of random symmetric biases alike in both networks, per layer.
        scope: "layer"; a global threshold couples the layers and has a prediction only.
        relative: divide by the root of the exact E‖F‖² bound.

    References:
        derived in docs/gap.md (halving lemma).
    """
    network = random_network(widths, densities, laws=laws, activations=activations, method=method)
    if scope == "global":
        raise ValueError(
            "a global threshold couples the layers: no mean square theorem. Use the product route "
            "of sup_bound, or mean_field for a prediction."
        )
    positive("norm", norm)
    for phi in network.activations:
        if phi.at_zero != 0:
            raise ValueError(
                f"the mean square theorem needs φ(0) = 0, which {phi.name} has not. Use sup_bound."
            )
    biases = [0.0] * len(network.shapes) if bias_variances is None else list(bias_variances)
    if len(biases) != len(network.shapes):
        raise ValueError(
            f"`bias_variances` must have {len(network.shapes)} entries, one per layer, got "
            f"{len(biases)}."
        )
    gap, size = _second_moments(network, norm, biases, exact=True)
    scale = math.sqrt(size)
    value = math.sqrt(gap) / (scale if relative else 1.0)
    vacuous, reason = judge(value, None, 1.0 if relative else scale)
    return Statement(
        kind="mean_square",
        status="RIG",
        level="L1",
        value=value,
        route="exact recursion",
        relative=relative,
        trivial=None,
        vacuous=vacuous,
        reason=reason,
        assumptions=(
            "an expectation over initial weights and masks at one input; not trained weights",
        ),
    )


def markov_gap(mean_square: Statement, delta: float) -> float:
    """√(E gap² / δ): exceeded with probability at most δ over weights, mask and input together."""
    return mean_square.value / math.sqrt(fraction("delta", delta))


def mean_field(
    widths: Widths,
    densities: float | Sequence[float],
    *,
    laws: str | Law | Sequence[Law] = "he_uniform",
    activations: str | Activation | Sequence[str | Activation] = "relu",
    method: Method = "random",
    norm: float = 1.0,
    delta: float | None = None,
    scope: str = "layer",
    relative: bool = False,
) -> Statement:
    """Predicted root mean square gap in the limit of wide layers.

    Carries (E‖h‖², E‖ĥ‖², E⟨h, ĥ⟩) through the layers as bivariate Gaussians; the output gap is
    d_l (Q + Q̂ − 2C). With `delta`, the predicted quantile rms · √(χ²_{d_l, 1−δ} / d_l) instead.
    With scope "global" (magnitude, one density) each layer has the density that one threshold for
    all layers leaves it on average.

    References:
        Cho & Saul (2009), Kernel methods for deep learning, for the ReLU moment.
    """
    from scipy import stats  # half a second that most calls do not need

    network = random_network(widths, densities, laws=laws, activations=activations, method=method)
    if scope == "global":
        if method != "magnitude" or len(set(network.densities)) != 1:
            raise ValueError("`scope='global'` takes magnitude pruning and one density for all.")
        shared = global_densities(network, network.densities[0])
        network = replace(network, densities=shared)
    elif scope != "layer":
        raise ValueError(f"`scope` must be layer or global, got {scope!r}.")
    size = size_p = positive("norm", norm) ** 2
    gap = 0.0  # E‖h − ĥ‖², carried by itself so that small gaps keep their digits
    count = len(network.shapes)
    for i, (shape, law) in enumerate(zip(network.shapes, network.laws, strict=True)):
        rho = kept_energy(shape, law, method, network.densities[i])
        variance, d = law.variance, shape.spread
        # W h and V ĥ: E(Wh − Vĥ)² = s²[(1 − ρ)‖h‖² + ρ‖h − ĥ‖²] + …, by method
        if method == "random_rescaled":
            q, q_p = variance * size, variance / rho * size_p
            apart = variance * (gap + (1 / rho - 1) * size_p)
        else:
            q, q_p = variance * size, rho * variance * size_p
            apart = variance * ((1 - rho) * size + rho * gap)
        if i + 1 == count:
            size, size_p, gap = d * q, d * q_p, d * apart
        else:
            size, size_p, gap = (
                d * value for value in _gaussian_moments(network.activations[i], q, q_p, apart)
            )
        size, size_p, gap = (shape.gain**2 * value for value in (size, size_p, gap))
    scale = math.sqrt(size)
    value = math.sqrt(max(gap, 0.0))
    route = "mean field"
    if delta is not None:
        outputs = network.shapes[-1].units
        factor = stats.chi2.isf(fraction("delta", delta), outputs) / outputs
        value, route = value * math.sqrt(factor), f"mean field, quantile {1 - delta:.3g}"
    return Statement(
        kind="predicted",
        status="PRED",
        level="L1",
        value=value / (scale if relative else 1.0),
        route=route,
        relative=relative,
        assumptions=("wide layers, initial weights",),
    )


def _gaussian_moments(
    phi: Activation, q: float, q_p: float, apart: float
) -> tuple[float, float, float]:
    """E φ(u)², E φ(v)², E (φ(u) − φ(v))² for Gaussians with E (u − v)² = apart."""
    if phi.name == "identity":
        return q, q_p, apart
    if q == 0 or q_p == 0:
        first, second = _one(phi, q), _one(phi, q_p)
        cross = 2 * math.sqrt(first * second) if phi.at_zero else 0.0
        return first, second, first + second - cross
    if phi.name == "relu":
        root = math.sqrt(q * q_p)
        # 1 − cos θ = (apart − (√q − √q̂)²) / (2√(q q̂)), free of cancellation
        versine = max((apart - (math.sqrt(q) - math.sqrt(q_p)) ** 2) / (2 * root), 0.0)
        versine = min(versine, 2.0)
        theta = 2 * math.asin(math.sqrt(versine / 2))
        if versine < 1e-8:
            # sin θ + (π − θ) cos θ = π cos θ + (sin θ − θ cos θ), and the bracket is θ³/3 − …
            rest = theta**3 / 3
        else:
            rest = math.sin(theta) - theta * math.cos(theta)
        # E(φ(u) − φ(v))² = apart/2 − root · (sin θ − θ cos θ) / π, as cos θ root = (q+q̂−apart)/2
        return q / 2, q_p / 2, max(apart / 2 - root * rest / math.pi, 0.0)
    return _one(phi, q), _one(phi, q_p), _difference(phi, q, q_p, apart)


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    return points, weights / weights.sum()


def _apply(phi: Activation, values: np.ndarray) -> np.ndarray:
    import torch

    result: np.ndarray = phi.function(torch.from_numpy(np.ascontiguousarray(values))).numpy()
    return result


def _one(phi: Activation, q: float) -> float:
    if phi.name == "relu":
        return q / 2
    points, weights = _nodes()
    return float(weights @ _apply(phi, math.sqrt(q) * points) ** 2)


def _difference(phi: Activation, q: float, q_p: float, apart: float) -> float:
    """E (φ(u) − φ(v))² by a tensor Gauss-Hermite rule in (u, what v has beyond u)."""
    points, weights = _nodes()
    correlation = (q + q_p - apart) / 2
    u = math.sqrt(q) * points[:, None]
    slope = correlation / q
    # v − u = (slope − 1) u + rest, the rest independent of u
    rest = math.sqrt(max(q_p - correlation**2 / q, 0.0)) * points[None, :]
    v = slope * u + rest
    squares = (_apply(phi, np.broadcast_to(u, v.shape)) - _apply(phi, v)) ** 2
    return float(weights @ squares @ weights)


def mean_square_plan(
    widths: Widths,
    limit: float,
    *,
    laws: str | Law | Sequence[Law] = "he_uniform",
    method: Method = "random",
) -> tuple[float, ...]:
    """Densities that prune most while the relative mean square gap of a ReLU network stays ≤ ε.

    Minimises Σ N_i p_i under ∏ ρ_i ≥ 1 − ε² (rescaled: ∏ p_i ≥ 1 / (1 + ε²)). Random masks: water
    filling p_i = min(1, μ / N_i). Magnitude: equal t_i² / (s_i² ρ_i N_i), t_i the threshold.

    References:
        derived in docs/gap.md.
    """
    network = random_network(widths, 1.0, laws=laws, method=method)
    epsilon = positive("limit", limit, zero=True)
    if epsilon == 0:
        return (1.0,) * len(network.shapes)
    if method == "random_rescaled":
        target = -math.log1p(epsilon**2)
    elif epsilon >= 1:
        return (0.0,) * len(network.shapes)
    else:
        target = math.log1p(-(epsilon**2))
    totals = [shape.total for shape in network.shapes]
    if method != "magnitude":
        return water_filling(totals, math.exp(target))

    def densities(level: float) -> tuple[float, ...]:
        return tuple(
            _density_at(shape, law, level)
            for shape, law in zip(network.shapes, network.laws, strict=True)
        )

    def log_energy(kept: Sequence[float]) -> float:
        energies = [
            kept_energy(shape, law, "magnitude", p)
            for shape, law, p in zip(network.shapes, network.laws, kept, strict=True)
        ]
        return sum(math.log(max(e, 1e-300)) for e in energies)

    low, high = 0.0, 1.0 / min(totals)
    while log_energy(densities(high)) > target and high < 1e12:
        high *= 4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if log_energy(densities(middle)) >= target else (low, middle)
    return densities(low)


def _density_at(shape: LayerShape, law: Law, level: float) -> float:
    """Density at which t² / (s² ρ N) reaches `level`; the left side grows with the pruned share."""

    def value(q: float) -> float:
        rho = 1 - energy_below(law, shape.total, round(q * shape.total))
        return quantile(law, q) ** 2 / (law.variance * max(rho, 1e-300) * shape.total)

    low, high = 0.0, 1.0 - 1.0 / shape.total
    if value(high) <= level:
        return 1 - high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) <= level else (low, middle)
    return 1 - low


def water_filling(totals: Sequence[float], product: float) -> tuple[float, ...]:
    """p_i = min(1, μ / N_i) with ∏ p_i = product: fewest kept Σ N_i p_i."""
    fraction("product", product, one=True)
    low, high = 0.0, float(max(totals))
    for _ in range(200):
        middle = (low + high) / 2
        logs = sum(min(0.0, math.log(middle / n)) for n in totals)
        low, high = (low, middle) if logs >= math.log(product) else (middle, high)
    return tuple(min(1.0, high / n) for n in totals)
