"""Whole networks before training: bounds, predictions and measurements, and minimal widths."""

import math
from typing import Any

from prunus.files import Row
from prunus.progress import track
from prunus.rng import generator_for
from prunus.theory.gap.apriori import product_route, sup_bound
from prunus.theory.gap.concentration import iid_norm, latala, matrix_bernstein
from prunus.theory.gap.inverse import minimal_width
from prunus.theory.gap.laws import Law, Method, normal, uniform
from prunus.theory.gap.layer_norms import part_moments
from prunus.theory.gap.mean_square import mean_field, mean_square_bound
from prunus.theory.gap.network import LayerShape, NormRule, norm_bound, random_network
from prunus.theory.gap.simulate import simulated_gaps, simulated_sups

__all__ = ["bernstein_rule", "latala_rule", "network_rows", "walk_rule", "width_rows"]

DELTA = 0.05
# φ, law, d, l, method, density, and what an independent implementation of the same theorems found:
# largest gap, Latała + Markov, Bernstein, product, width route, rms, rms bound, mean field
Case = tuple[str, str, int, int, Method, float, tuple[float | None, ...]]
CASES: tuple[Case, ...] = (
    ("relu", "U", 100, 2, "random", 0.9, (1.02, 6e4, 39, 4.68, 4.87, 0.190, 0.195, 0.192)),
    ("relu", "U", 2000, 2, "random", 0.9, (0.748, 4e4, 35, 3.00, 2.95, 0.0414, 0.0436, 0.0429)),
    ("relu", "U", 2000, 2, "magnitude", 0.9,
     (0.073, 5e3, 3.8, 0.323, 0.317, 0.0047, 0.0045, 0.0045)),
    ("relu", "U", 1000, 3, "random", 0.99, (0.346, 4e7, 171, 5.93, 5.44, 0.0219, 0.0244, 0.0240)),
    ("relu", "U", 1000, 3, "random", 0.9, (0.983, 8e7, 386, 13.6, 12.4, 0.066, 0.0736, 0.0708)),
    ("relu", "U", 1000, 3, "random", 0.5, (1.48, 1e8, 626, 22.1, 12.6, 0.132, 0.132, 0.127)),
    ("relu", "U", 1000, 3, "random_rescaled", 0.9,
     (1.15, 1e8, 449, 15.7, 14.4, 0.081, 0.086, 0.083)),
    ("relu", "U", 1000, 3, "magnitude", 0.9,
     (0.094, 1e7, 43, 1.51, 1.37, 0.0073, 0.0077, 0.0077)),
    ("relu", "U", 1000, 3, "magnitude", 0.5, (1.12, 9e7, 403, 15.3, 13.9, 0.083, 0.081, 0.078)),
    ("relu", "U", 100, 5, "random", 0.9, (2.17, 7e14, 4e4, 289, 265, 0.237, 0.286, 0.262)),
    ("relu", "N", 1000, 3, "random", 0.9, (0.973, 9e7, None, 14.2, 10.6, 0.063, 0.0736, 0.0708)),
    ("relu", "N", 100, 5, "random", 0.9, (1.97, 9e14, None, 324, 141, 0.254, 0.286, 0.262)),
    ("tanh", "U", 2000, 2, "random", 0.9, (0.466, 2e4, 17, 1.50, 1.53, 0.0305, 0.0308, 0.0308)),
    ("tanh", "U", 1000, 3, "random", 0.9, (0.576, 3e7, 137, 4.81, 4.76, 0.0527, 0.0521, 0.0520)),
    ("tanh", "U", 100, 5, "random", 0.9, (0.962, 1e14, 7e3, 51, 28, 0.193, 0.202, 0.195)),
    ("tanh", "N", 2000, 3, "random", 0.9, (0.563, 3e7, None, 4.67, 3.47, 0.0356, 0.0368, 0.0368)),
)  # fmt: skip
# depth, α, method, and the widths an independent implementation found: walk moments, Bernstein,
# Latała + Markov (None: above 3e8)
WIDTHS: tuple[tuple[int, float, Method, int, float, float | None], ...] = (
    (2, 0.25, "magnitude", 131, 1.4e3, None),
    (3, 0.25, "magnitude", 268, 1.2e4, None),
    (5, 0.25, "magnitude", 827, 1.2e6, None),
    (2, 0.5, "magnitude", 23, 79, 3.1e4),
    (3, 0.5, "magnitude", 34, 209, 7.8e6),
    (2, 0.5, "random", 4856, 9.8e5, None),
    (3, 0.5, "random", 18850, 6.5e7, None),
)
LARGEST = 3 * 10**8


def walk_rule(
    shape: LayerShape,
    law: Law,
    delta: float,
    method: Method = "random",
    density: float = 0.0,
    part: str = "pruned",
    threshold: float | None = None,
) -> float:
    """Walk moments alone, without the Chernoff form and the concentration of large layers."""
    logs, _ = part_moments(law, method, density, part, threshold)
    if not math.isfinite(logs[0]):
        return 0.0
    return iid_norm(shape.outputs, shape.inputs, logs, delta).value


def bernstein_rule(
    shape: LayerShape,
    law: Law,
    delta: float,
    method: Method = "random",
    density: float = 0.0,
    part: str = "pruned",
    threshold: float | None = None,
) -> float:
    """Matrix Bernstein alone; ∞ for laws without a bound."""
    logs, reach = part_moments(law, method, density, part, threshold)
    if not math.isfinite(logs[0]):
        return 0.0
    spread = max(shape.outputs, shape.inputs) * math.exp(logs[0])
    return matrix_bernstein(shape.outputs, shape.inputs, spread, reach, delta)


def latala_rule(
    shape: LayerShape,
    law: Law,
    delta: float,
    method: Method = "random",
    density: float = 0.0,
    part: str = "pruned",
    threshold: float | None = None,
) -> float:
    """Latała's shape with its unknown constant taken as 1, and Markov: no bound."""
    logs, _ = part_moments(law, method, density, part, threshold)
    if not math.isfinite(logs[0]):
        return 0.0
    return latala(shape.outputs, shape.inputs, logs, delta)


def network_rows(*, full: bool, seed: int, progress: bool | None = None) -> list[Row]:
    """Sup and root mean square: bounds, prediction and what is found, for networks as drawn."""
    cases = [case for case in CASES if full or case[2] <= 100]
    cases += [("relu", "U", 100, 2, "magnitude", 0.9, (None,) * 8)]
    cases += [("tanh", "U", 100, 2, "random", 0.9, (None,) * 8)]
    rows: list[Row] = []
    for case in track(cases, "networks", progress=progress):
        rows += _network(case, seed)
    return rows


def _network(case: Case, seed: int) -> list[Row]:
    phi, kind, d, depth, method, density, known = case
    widths = [d] * depth + [10]
    variance = (2 if phi == "relu" else 1) / d
    law = normal(math.sqrt(variance)) if kind == "N" else uniform(math.sqrt(3 * variance))
    options: dict[str, Any] = {"laws": law, "activations": phi, "method": method}
    network = random_network(widths, density, **options)
    generator = generator_for(seed, "gap network", phi, kind, d, depth, method, str(density))
    large = d > 500
    sups = simulated_sups(network, 2 if large else 20, steps=100, generator=generator)
    gaps = simulated_gaps(network, 12 if large else 100, inputs=16, generator=generator)
    sup, rms = float(sups.mean()), float(gaps.square().mean().sqrt())
    shapes: dict[str, NormRule] = {
        "sup, Latała C = 1 + Markov (no bound)": latala_rule,
        "sup, matrix Bernstein": bernstein_rule,
        "sup, product route": norm_bound,
    }
    values = {
        name: product_route(network, DELTA, 1.0, rule=rule).value for name, rule in shapes.items()
    }
    values["sup, width route"] = sup_bound(widths, density, route="width", **options).value
    values["rms bound"] = mean_square_bound(widths, density, **options).value
    values["rms mean field (prediction)"] = mean_field(widths, density, **options).value
    order = (known[1], known[2], known[3], known[4], known[6], known[7])
    rows = []
    for (name, value), other in zip(values.items(), order, strict=True):
        measured, theirs = (sup, known[0]) if name.startswith("sup") else (rms, known[5])
        if not math.isfinite(value):
            continue
        rows.append(
            {
                "part": "network",
                "setting": f"{phi} {kind}, d = {d}, l = {depth}, {method}, density {density:g}",
                "bound": name,
                "value": value,
                "measured": measured,
                "ratio": value / measured,
                "prototype": None if other is None or theirs is None else other / theirs,
                "prototype value": other,
            }
        )
    return rows


def width_rows(*, progress: bool | None = None) -> list[Row]:
    """Least widths at which pruning N^{1−α} weights per layer costs at most 0.1 over the ball."""
    rows = []
    for depth, exponent, method, walk, bernstein, markov in track(
        WIDTHS, "minimal widths", progress=progress
    ):
        for name, rule, known in (
            ("engine", norm_bound, None),
            ("walk moments alone", walk_rule, float(walk)),
            ("matrix Bernstein", bernstein_rule, bernstein),
            ("Latała C = 1 + Markov (no bound)", latala_rule, markov),
        ):
            try:
                found: float = minimal_width(
                    depth, 0.1, exponent, method=method, largest=LARGEST, rule=rule
                )[0]
            except ValueError:  # none up to LARGEST
                found = math.inf
            rows.append(
                {
                    "part": "minimal width",
                    "setting": f"l = {depth}, α = {exponent:g}, {method}",
                    "bound": name,
                    "value": found,
                    "prototype value": known,
                }
            )
    return rows
