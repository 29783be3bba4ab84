"""How tight the a-priori statements are: one layer, whole networks, coverage over many settings."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats as stats
import torch

from prunus.progress import track
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.rng import generator_for
from prunus.theory.gap import laws
from prunus.theory.gap.apriori import sup_bound
from prunus.theory.gap.concentration import (
    chernoff_norm,
    iid_norm,
    latala,
    layer_norm,
    magnitude_threshold,
    matrix_bernstein,
)
from prunus.theory.gap.laws import METHODS, Law, Method
from prunus.theory.gap.mean_square import mean_field, mean_square_bound
from prunus.theory.gap.network import random_network
from prunus.theory.gap.simulate import (
    draw_matrix,
    draw_pruned,
    simulated_gaps,
    simulated_sups,
)

__all__ = ["coverage", "reproduce"]

DELTA = 0.05
FALSE_ALARM = 1e-3  # of one setting's binomial test


def reproduce(
    *, scale: Scale, seed: int, data_dir: Path | None = None, progress: bool | None = None
) -> Reproduction:
    """Ratios of bound to measurement, and the count of violations over seeded settings.

    Args:
        scale: "small" takes a minute or two; "full" has wider layers and networks and more draws.
        seed: of all draws.
        data_dir: not needed; all is drawn.
        progress: see `prunus.progress.progress_bar`.
    """
    del data_dir
    full = scale == "full"
    layers = [(20, 0.1), *((100, q) for q in (0.01, 0.03, 0.1, 0.3, 0.5, 0.9))]
    layers += [(1000, 0.1), (1000, 0.5), (1000, 1.0)] if full else []
    rows: list[dict[str, Any]] = []
    for n, q in track(layers, "one layer", progress=progress):
        rows += _layer(n, q, 40 if n > 500 else 400, seed)
    nets: list[tuple[str, list[int], Method, float]] = [
        ("relu", [100, 100, 10], "random", 0.9),
        ("relu", [100, 100, 10], "magnitude", 0.9),
        ("tanh", [100, 100, 10], "random", 0.9),
        ("relu", [100] * 5 + [10], "random", 0.9),
    ]
    if full:
        nets += [
            ("relu", [1000] * 3 + [10], "random", 0.99),
            ("relu", [1000] * 3 + [10], "random", 0.9),
            ("relu", [1000] * 3 + [10], "random_rescaled", 0.9),
            ("relu", [1000] * 3 + [10], "magnitude", 0.9),
            ("relu", [1000] * 3 + [10], "magnitude", 0.5),
            ("tanh", [1000] * 3 + [10], "random", 0.9),
        ]
    for phi, widths, method, density in track(nets, "networks", progress=progress):
        rows += _network(phi, widths, method, density, 4 if widths[0] > 500 else 40, seed)
    rows += coverage(400 if full else 100, seed=seed, progress=progress)
    records = _curve_of([row for row in rows if row["part"] == "layer" and row["n"] == 100])
    chart = figure(
        records,
        x="q",
        y="norm",
        x_title="share q of the entries present",
        y_title="norm of a 100 × 100 matrix, 95 %",
        x_scale="log",
        y_scale="log",
        title="One layer: thresholds (dashed) and measured quantile (points)",
        width=460,
    )
    return Reproduction(
        name="gap-tightness",
        title="Tightness and coverage of the a-priori gap statements",
        paper="Qian & Klabjan (2021), A probabilistic approach to neural network pruning: the "
        "question; the constants are ours",
        conditions=(
            f"δ = {DELTA}; one layer: uniform weights of unit variance, each present with "
            "probability q; the truth is the measured 95 % quantile",
            "networks: variance 2/fan-in (relu) or 1/fan-in (tanh), uniform, inputs in the unit "
            "ball; the true sup is the mean over draws of the largest gap found by gradient "
            "ascent, a lower bound of the sup",
            "Latała's constant is unspecified and taken as 1: that row is a shape, not a bound",
            f"coverage: δ = 0.1 per setting; a setting fails beyond the {1 - FALSE_ALARM:.1%} "
            "quantile of the binomial count; control: 0.9 × the measured 80 % quantile as a bound",
        ),
        rows=rows,
        figures={"gap-tightness-layer": (chart, records)},
    )


def _curve_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One dashed line per bound, one point per measured quantile."""
    bounds = [
        {"q": row["q"], "norm": row["value"], "series": row["bound"], "kind": "bound"}
        for row in rows
        if not row["bound"].endswith("(prediction)")
    ]
    seen = {row["q"]: row["measured"] for row in rows}
    points = [
        {"q": q, "norm": value, "series": "measured 95 % quantile", "kind": "measured"}
        for q, value in seen.items()
    ]
    return bounds + points


def _layer(n: int, q: float, draws: int, seed: int) -> list[dict[str, Any]]:
    law = laws.uniform(math.sqrt(3))
    generator = generator_for(seed, "gap layer", n, str(q))
    norms = []
    for _ in range(draws):
        weight = draw_matrix(law, n, n, generator=generator)
        kept = torch.rand(n, n, dtype=torch.float64, generator=generator) < q
        norms.append(_norm(weight * kept))
    truth = float(np.quantile(norms, 1 - DELTA))
    logs = laws.pruned_moments(law, "random", 1 - q)
    flat = laws.dense_moments(laws.normal(1.0)) + math.log(q)  # scale fixed at the deviation
    spread = max(q, 3 / 5)  # all-order scale of a masked uniform entry of unit variance
    if q == 1:
        spread = 1.0
    values = {
        "walk moments": iid_norm(n, n, logs, DELTA).value,
        "walk moments, scale s only": iid_norm(n, n, np.maximum(flat, logs), DELTA).value,
        "Chernoff": chernoff_norm(
            n, n, q / max(spread, q) if q < 1 else 1.0, DELTA, scale=math.sqrt(max(spread, q))
        ),
        "matrix Bernstein": matrix_bernstein(n, n, n * q, math.sqrt(3), DELTA),
        "Latała C = 1 + Markov (prediction)": latala(n, n, logs, DELTA),
    }
    return [
        {
            "part": "layer",
            "setting": f"{n} × {n}, q = {q:g}",
            "n": n,
            "q": q,
            "bound": name,
            "value": value,
            "measured": truth,
            "ratio": value / truth,
        }
        for name, value in values.items()
    ]


def _norm(matrix: torch.Tensor) -> float:
    if max(matrix.shape) <= 300:
        return float(torch.linalg.matrix_norm(matrix, 2))
    return float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp_min(0).sqrt())


def _network(
    phi: str, widths: list[int], method: Method, density: float, draws: int, seed: int
) -> list[dict[str, Any]]:
    depth, d = len(widths) - 1, widths[0]
    law = laws.uniform(math.sqrt((6 if phi == "relu" else 3) / d))
    options: dict[str, Any] = {"laws": law, "activations": phi, "method": method}
    network = random_network(widths, density, **options)
    generator = generator_for(seed, "gap network", phi, d, depth, method, str(density))
    steps = 60 if d > 500 else 100
    sup = float(simulated_sups(network, min(draws, 4), steps=steps, generator=generator).mean())
    rms = float(
        simulated_gaps(network, draws, inputs=8, generator=generator).square().mean().sqrt()
    )
    values = [
        ("sup, product route", sup_bound(widths, density, route="product", **options).value, sup),
        ("sup, width route", sup_bound(widths, density, route="width", **options).value, sup),
        ("rms bound", mean_square_bound(widths, density, **options).value, rms),
        ("rms mean field (prediction)", mean_field(widths, density, **options).value, rms),
    ]
    return [
        {
            "part": "network",
            "setting": f"{phi}, d = {d}, l = {depth}, {method}, density {density:g}",
            "n": d,
            "bound": name,
            "value": value,
            "measured": measured,
            "ratio": value / measured,
        }
        for name, value, measured in values
    ]


SHAPES = ((1, 7), (7, 1), (2, 2), (5, 5), (10, 10), (8, 20), (20, 8), (25, 25), (30, 12),
          (40, 40), (15, 50), (50, 15))  # fmt: skip
DENSITIES = (0.2, 0.5, 0.7, 0.9, 0.95, 0.99)


def coverage(
    draws: int, *, seed: int, delta: float = 0.1, progress: bool | None = None
) -> list[dict[str, Any]]:
    """Violations of layer thresholds over 432 settings, with the control that must be caught.

    A setting is a shape, a density, a law (uniform, normal) and a method; both the pruned part D
    and, for magnitude, the bound with its own threshold event are drawn `draws` times.

    Returns:
        one row per method: settings, settings that fail the binomial test, the largest share of
        violations, the share of caught controls, the median and 90 % ratio of bound to quantile.
    """
    rows = []
    limit = int(stats.binom.isf(FALSE_ALARM, draws, delta))
    for method in METHODS:
        ratios, worst, failed, caught, count = [], 0.0, 0, 0, 0
        settings = [
            (shape, p, law)
            for shape in SHAPES
            for p in DENSITIES
            for law in (laws.uniform(1.0), laws.normal(1.0))
        ]
        for (n, m), p, law in track(settings, f"coverage, {method}", progress=progress):
            found = _setting(n, m, p, law, method, delta, draws, seed)  # type: ignore[arg-type]
            if found is None:
                continue
            bound, norms = found
            violations = int((norms > bound).sum())
            count += 1
            failed += violations > limit
            worst = max(worst, violations / draws)
            quantile = float(np.quantile(norms, 1 - delta))
            if quantile > 0:
                ratios.append(bound / quantile)
                control = 0.9 * float(np.quantile(norms, 1 - 2 * delta))
                caught += int((norms > control).sum()) > limit
        rows.append(
            {
                "part": "coverage",
                "setting": f"{method}: {count} settings of {draws} draws, {failed} failed, "
                f"largest share {worst:.3f}, controls caught {caught} of {len(ratios)}",
                "n": None,
                "bound": "walk moments, median and 90 % ratio "
                f"{np.median(ratios):.3f}, {np.quantile(ratios, 0.9):.3f}",
                "value": failed,
                "measured": worst,
                "ratio": float(np.median(ratios)),
            }
        )
    return rows


def _setting(
    n: int, m: int, p: float, law: Law, method: Method, delta: float, draws: int, seed: int
) -> tuple[float, np.ndarray] | None:
    total = n * m
    k = total - math.floor(p * total + 0.5)
    if k == 0 and method == "magnitude":
        return None
    generator = generator_for(seed, "coverage", method, law.kind, n, m, str(p))
    share, cut = delta, None
    if method == "magnitude":
        share, cut = 0.9 * delta, magnitude_threshold(law, total, k, 0.1 * delta)
    bound = layer_norm(n, m, law, share, method=method, density=p, threshold=cut).value
    weights = draw_matrix(law, draws * n, m, generator=generator).reshape(draws, n, m)
    if method == "magnitude":
        pruned = torch.stack(
            [draw_pruned(w, p, method, generator=generator, kept=total - k) for w in weights]
        )
    else:
        pruned = draw_pruned(weights, p, method, generator=generator)
    norms = torch.linalg.matrix_norm(weights - pruned, 2)
    return bound, norms.numpy()
