"""One random layer: every threshold over the measured quantile of its norm."""

import math

import numpy as np
import torch
from torch import Tensor

from prunus.files import Row, Rows
from prunus.progress import track
from prunus.rng import generator_for
from prunus.theory.gap import laws
from prunus.theory.gap.concentration import chernoff_norm, iid_norm, latala, matrix_bernstein
from prunus.theory.gap.convolution import circular_norm
from prunus.theory.gap.network import LayerShape, norm_bound
from prunus.theory.gap.simulate import draw_matrix

__all__ = ["convolution_rows", "layer_curve", "layer_rows"]

DELTA = 0.05
WALK, FLAT, CHERNOFF, BERNSTEIN, LATALA = (
    "walk moments",
    "walk moments, scale s only",
    "Chernoff",
    "matrix Bernstein",
    "Latała C = 1 + Markov (no bound)",
)
# ratios of an earlier, independent implementation of the same theorems
PROTOTYPE: dict[tuple[int, float], tuple[float, float, float, float, float]] = {
    (20, 0.1): (1.19, 1.35, 1.84, 2.9, 32),
    (100, 0.01): (1.22, 1.43, 1.91, 3.4, 35),
    (100, 0.1): (1.13, 1.21, 1.51, 2.7, 37),
    (100, 0.5): (1.03, 1.07, 1.23, 2.4, 33),
    (1000, 0.1): (1.07, 1.10, 1.23, 2.6, 41),
    (1000, 0.5): (1.03, 1.04, 1.09, 2.5, 34),
    (1000, 1.0): (1.02, 1.02, 1.07, 2.4, 31),
}


def layer_rows(*, full: bool, seed: int, progress: bool | None = None) -> list[Row]:
    """Uniform weights of unit variance, each present with probability q, 95 % quantile."""
    cases = [(20, 0.1), *((100, q) for q in (0.01, 0.03, 0.1, 0.3, 0.5, 0.9))]
    cases += [(1000, 0.1), (1000, 0.5), (1000, 1.0)] if full else []
    rows: list[Row] = []
    for n, q in track(cases, "one layer", progress=progress):
        rows += _layer(n, q, 100 if n > 500 else 1000, seed)
    return rows


def _layer(n: int, q: float, draws: int, seed: int) -> list[Row]:
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
    scale = 1.0 if q == 1 else math.sqrt(max(q, 3 / 5))  # all-order A of the masked entry
    values = {
        WALK: iid_norm(n, n, logs, DELTA).value,
        FLAT: iid_norm(n, n, np.maximum(flat, logs), DELTA).value,
        CHERNOFF: chernoff_norm(n, n, q / scale**2, DELTA, scale=scale),
        BERNSTEIN: matrix_bernstein(n, n, n * q, math.sqrt(3), DELTA),
        LATALA: latala(n, n, logs, DELTA),
    }
    known = PROTOTYPE.get((n, q), (None,) * 5)
    return [
        {
            "part": "layer",
            "setting": f"{n} × {n}, q = {q:g}",
            "bound": name,
            "value": value,
            "measured": truth,
            "ratio": value / truth,
            "prototype": other,
            "n": n,
            "q": q,
        }
        for (name, value), other in zip(values.items(), known, strict=True)
    ]


def _norm(matrix: Tensor) -> float:
    if max(matrix.shape) <= 300:
        return float(torch.linalg.matrix_norm(matrix, 2))
    return float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp_min(0).sqrt())


def layer_curve(rows: Rows) -> list[Row]:
    """One dashed line per bound, one point per measured quantile, from the rows of one side."""
    bounds = [
        {"q": row["q"], "norm": row["value"], "series": row["bound"], "kind": "bound"}
        for row in rows
        if row["bound"] != LATALA
    ]
    seen = {row["q"]: row["measured"] for row in rows}
    points = [
        {"q": q, "norm": value, "series": "measured 95 % quantile", "kind": "measured"}
        for q, value in seen.items()
    ]
    return bounds + points


def convolution_rows(*, full: bool, seed: int, progress: bool | None = None) -> list[Row]:
    """The largest frequency of a random 3 × 3 kernel: by frequencies, and by reshaping."""
    rows = []
    cases = [(16, q) for q in (0.01, 0.1, 0.5)]
    cases += [(64, q) for q in (0.01, 0.1, 0.5)] + [(128, 0.1)] if full else []
    for channels, q in track(cases, "convolutions", progress=progress):
        generator = generator_for(seed, "gap convolution", channels, str(q))
        law, side = laws.normal(1.0), 8
        norms = []
        for _ in range(200 if channels < 100 else 60):
            kernel = draw_matrix(law, channels, 9 * channels, generator=generator)
            kept = torch.rand(kernel.shape, dtype=torch.float64, generator=generator) < q
            images = (kernel * kept).reshape(channels, channels, 3, 3)
            norms.append(circular_norm(images, (side, side)))
        truth = float(np.quantile(norms, 1 - DELTA))
        shape = LayerShape(
            outputs=channels, inputs=channels, kernel=(3, 3), grid=(side, side)
        )  # fmt: skip
        logs = laws.pruned_moments(law, "random", 1 - q)
        flat = 3 * iid_norm(3 * channels, 3 * channels, logs, DELTA).value
        both = norm_bound(shape, law, DELTA, "random", 1 - q, "pruned")
        rows += [
            {
                "part": "convolution",
                "setting": f"{channels} channels, 3 × 3 on {side} × {side}, q = {q:g}",
                "bound": name,
                "value": value,
                "measured": truth,
                "ratio": value / truth,
            }
            for name, value in (("best of frequencies and reshape", both), ("reshape", flat))
        ]
    return rows
