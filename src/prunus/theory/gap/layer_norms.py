"""The best threshold for one layer of weights of one law: for W, for what is pruned, for V."""

import math

import numpy as np

from prunus.check import fraction, whole
from prunus.later import Later
from prunus.theory.gap.concentration import (
    FROBENIUS,
    LARGE,
    Array,
    NormBound,
    chernoff_norm,
    concentrated_norm,
    davidson_szarek,
    expected_norm,
    heavy_tail,
    iid_norm,
    matrix_bernstein,
)
from prunus.theory.gap.laws import Law, Method, below, kept_moments, pruned_moments, quantile

__all__ = ["fixed_size_delta", "layer_norm", "magnitude_threshold", "part_moments"]

special = Later("scipy.special")


def fixed_size_delta(delta: float, total: int, kept: int) -> float:
    """δ to use with Bernoulli(k/N) masks so that masks of exactly k entries fail with ≤ δ.

    Conditioning on the count: P_fixed(E) ≤ P_Bernoulli(E) / P(Bin(N, k/N) = k).
    """
    from scipy import stats  # half a second that most calls do not need

    if kept in (0, total):
        return delta
    return delta * math.exp(float(stats.binom.logpmf(kept, total, kept / total)) - 1e-9)


def magnitude_threshold(law: Law, total: int, pruned: int, delta: float) -> float:
    """t⁺ with P(T > t⁺) ≤ δ for T the k-th smallest |w| of N: G⁻¹ of a Beta quantile."""
    if pruned == 0:
        return 0.0
    # the complementary inverse keeps its digits for tiny δ
    level = 1 - float(special.betaincinv(total - pruned + 1, pruned, delta))
    return quantile(law, level)


def layer_norm(
    rows: int,
    columns: int,
    law: Law,
    delta: float,
    *,
    method: Method = "random",
    density: float = 0.0,
    part: str = "pruned",
    threshold: float | None = None,
) -> NormBound:
    """The best valid threshold for W, for D = W − V or for V of one layer of iid weights.

    The minimum of thresholds that are each valid at `delta`, chosen before any randomness. For
    symmetric laws they hold for masks of independent entries and for masks of an exact size drawn
    uniformly: masked parts use moments only, or the concentration of the whole W, which the
    contraction principle hands on to V (an exponential moment, not a tail, is what contracts).
    For asymmetric laws the entries of the mask must be independent.

    Args:
        rows: outputs of the layer.
        columns: inputs of the layer.
        law: law of one weight.
        delta: failure probability.
        method: how the layer is pruned.
        density: share of the weights that is kept (random methods).
        part: "dense" W, "pruned" D, or "kept" V.
        threshold: t⁺ of `magnitude_threshold`, for the pruned part under magnitude pruning; its
            own failure probability is not counted in `delta`.
    """
    n, m = whole("rows", rows, low=1), whole("columns", columns, low=1)
    fraction("delta", delta)
    if part not in ("dense", "pruned", "kept"):
        raise ValueError(f"`part` must be dense, pruned or kept, got {part!r}.")
    if math.isinf(law.bound) and law.kind == "moments":
        return _heavy_layer(n, m, law, delta, method, density, part)
    # V = W ∘ M without rescaling is a contraction of W, whatever chose the mask
    whole_matrix = part == "dense" or (part == "kept" and method == "magnitude")
    contracts = part == "dense" or (part == "kept" and method != "random_rescaled")
    logs, reach = part_moments(law, method, density, part, threshold)
    if not np.isfinite(logs[0]):
        return NormBound(value=0.0, route="nothing pruned", delta=delta)
    values = {"walk moments": iid_norm(n, m, logs, delta).value}
    if not law.symmetric:
        bound, variance = reach, math.exp(logs[0]) / 2
        values["matrix Bernstein"] = matrix_bernstein(n, m, max(n, m) * variance, bound, delta)
        values["concentration"] = concentrated_norm(expected_norm(n, m, logs), 2 * reach, delta)
    independent = part == "pruned" and method == "magnitude"  # w·1{|w| ≤ t⁺}, iid
    if independent:
        values["concentration"] = concentrated_norm(expected_norm(n, m, logs), 2 * reach, delta)
    if contracts and law.symmetric:
        expected = expected_norm(n, m, pruned_moments(law, "random", 0.0))
        length = min(2 * law.bound, law.gaussian_lipschitz or math.inf)
        if math.isfinite(length):
            values["concentration"] = concentrated_norm(expected, length, delta)
        if law.kind == "normal":
            values["Davidson-Szarek"] = davidson_szarek(n, m, math.sqrt(law.variance), delta)
    if max(n, m) > LARGE and law.symmetric:
        scale, presence = _all_orders(logs, law, method, whole_matrix, density, reach)
        values["Chernoff"] = chernoff_norm(n, m, presence, delta, scale=scale)
    route = min(values, key=values.__getitem__)
    return NormBound(value=values[route], route=route, delta=delta)


def part_moments(
    law: Law, method: Method, density: float, part: str, threshold: float | None
) -> tuple[Array, float]:
    """Even log moments of one entry of W, D or V, and a bound on its size (∞ where none)."""
    if part == "dense" or (part == "kept" and method == "magnitude"):
        # for V under magnitude pruning, contraction: any moment bound for W is valid
        return pruned_moments(law, "random", 0.0), law.bound
    if method == "magnitude":
        if threshold is None:
            raise ValueError("magnitude pruning needs a `threshold`: see magnitude_threshold.")
        return below(law, threshold), min(threshold, law.bound)
    if part == "kept":
        factor = 1 / density if method == "random_rescaled" and density > 0 else 1.0
        return kept_moments(law, method, density), factor * law.bound
    factor = 1.0
    if method == "random_rescaled" and density > 0:
        factor = max((1 - density) / density, 1.0)
    return pruned_moments(law, method, density), factor * law.bound


def _all_orders(
    logs: Array, law: Law, method: Method, whole_matrix: bool, density: float, reach: float
) -> tuple[float, float]:
    """(A, ρ) valid at every order, for the Chernoff form."""
    variance = math.exp(float(logs[0]))
    if law.kind in ("normal", "truncated_normal") and (whole_matrix or method != "magnitude"):
        parent = law.parent or 0.0
        factor = 1.0
        if method == "random_rescaled" and not whole_matrix:
            factor = max(1.0, (1 - density) / density, 1 / density)
        scale = max(parent * factor, math.sqrt(variance))
    elif law.kind == "uniform" and whole_matrix:
        scale = math.sqrt(variance)
    elif law.kind == "uniform" and method in ("random", "magnitude"):
        scale = math.sqrt(max(variance, reach * reach / 5))
    else:
        scale = max(math.sqrt(variance), reach / math.sqrt(3))
    return scale, min(1.0, variance / scale**2)


def _heavy_layer(
    n: int, m: int, law: Law, delta: float, method: Method, density: float, part: str
) -> NormBound:
    """Heavy tails: variance and fourth moment of the masked entry, then `heavy_tail`."""
    if law.fourth is None or not law.symmetric:
        raise ValueError("a law without a bound needs a fourth moment and symmetry.")
    if method == "magnitude" and part == "pruned":
        raise ValueError("magnitude pruning needs the whole law of |w|, got moments only.")
    second, fourth = 1.0, 1.0  # E of the mask factor squared and to the fourth
    p = density
    if part == "pruned" and method == "random":
        second = fourth = 1 - p
    elif part == "pruned":
        odds = (1 - p) / p
        second, fourth = p * odds**2 + (1 - p), p * odds**4 + (1 - p)
    elif part == "kept" and method == "random":
        second = fourth = p
    elif part == "kept" and method == "random_rescaled":
        second, fourth = 1 / p, 1 / p**3
    if second == 0:
        return NormBound(value=0.0, route="nothing pruned", delta=delta)
    value = heavy_tail(n, m, law.variance * second, law.fourth * fourth, delta)
    weak = value >= math.sqrt(n * m * law.variance * second / delta)
    return NormBound(value=value, route=FROBENIUS if weak else "heavy tail", delta=delta)
