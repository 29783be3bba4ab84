"""How often bounds fail: violations over many seeded settings, with a control that must be caught.

Every setting is drawn twice over: one half of the draws gives the measured quantile, the other half
counts how often the bound, and the control, is exceeded. The control is 0.9 times the measured
(1 − 2δ) quantile, taken as if it were a bound.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats as stats
import torch
from torch import Tensor

from prunus.files import Row
from prunus.progress import track
from prunus.rng import generator_for
from prunus.theory.gap import laws
from prunus.theory.gap.apriori import sup_bound
from prunus.theory.gap.given_weights import drawn_norm
from prunus.theory.gap.laws import METHODS, Law, Method
from prunus.theory.gap.layer_norms import layer_norm, magnitude_threshold
from prunus.theory.gap.mean_square import markov_gap, mean_square_bound
from prunus.theory.gap.network import LayerShape, pruned_count
from prunus.theory.gap.simulate import draw_matrix, draw_pruned

__all__ = ["FALSE_ALARM", "Setting", "coverage", "settings"]

FALSE_ALARM = 1e-3  # of one setting's binomial test
SHAPES = ((1, 7), (7, 1), (2, 2), (5, 5), (10, 10), (8, 20), (25, 25), (50, 15), (40, 40),
          (100, 30), (100, 100))  # fmt: skip
DENSITIES = (0.2, 0.5, 0.7, 0.9, 0.95, 0.99)
NETWORKS = ((12, 12, 5), (30, 30, 10), (10, 10, 10, 4), (25, 25, 25, 8), (15, 15, 15, 15, 5))


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """One setting of the coverage run.

    Attributes:
        kind: which bound, and how the networks are pruned.
        name: the rest, in words; also the key of its draws.
        bound: the value that at most a share δ of the draws may exceed.
        draw: n independent draws of the quantity that is bounded, from a generator.
    """

    kind: str
    name: str
    bound: Callable[[float], float]
    draw: Callable[[int, torch.Generator], Tensor]


def settings() -> Iterator[Setting]:
    """All settings: single layers, networks of depth 2 to 4, and masks of given weights."""
    drawn = (laws.uniform(1.0), laws.normal(1.0), laws.truncated_normal(1.0, 1.0))
    for method in METHODS:
        for n, m in SHAPES:
            for p in DENSITIES:
                for law in drawn[:2] if (n, m) != (10, 10) else drawn:
                    if method != "magnitude" or _pruned(n * m, p):
                        yield _layer_setting(n, m, p, law, method)
                        yield _kept_setting(n, m, p, law, method)
        for widths in NETWORKS:
            for p in (0.5, 0.9, 0.98):
                for preset in ("he_uniform", "he_normal"):
                    yield _linear_setting(widths, p, preset, method)
                    yield _square_setting(widths, p, preset, method)
    for rescaled in (True, False):
        for profile in ("heavy rows", "band", "positive", "own densities"):
            for p in (0.3, 0.7, 0.95):
                yield _mask_setting(profile, p, rescaled)


def _pruned(total: int, density: float) -> int:
    return pruned_count(LayerShape(outputs=1, inputs=total), density)


def _matrices(law: Law, count: int, n: int, m: int, generator: torch.Generator) -> Tensor:
    return draw_matrix(law, count * n, m, generator=generator).reshape(count, n, m)


def _prune(weights: Tensor, density: float, method: Method, generator: torch.Generator) -> Tensor:
    total = weights[0].numel()
    if method != "magnitude":
        return draw_pruned(weights, density, method, generator=generator)
    kept = total - _pruned(total, density)
    return torch.stack(
        [draw_pruned(w, density, method, generator=generator, kept=kept) for w in weights]
    )


def _layer_setting(n: int, m: int, p: float, law: Law, method: Method) -> Setting:
    """‖W − V‖ of one layer against its threshold."""

    def bound(delta: float) -> float:
        share, cut = delta, None
        if method == "magnitude":
            share = 0.9 * delta
            cut = magnitude_threshold(law, n * m, _pruned(n * m, p), 0.1 * delta)
        return layer_norm(n, m, law, share, method=method, density=p, threshold=cut).value

    def draw(count: int, generator: torch.Generator) -> Tensor:
        weights = _matrices(law, count, n, m, generator)
        return _norms(weights - _prune(weights, p, method, generator))

    name = f"{n} × {m}, density {p:g}, {law.kind}"
    return Setting(kind=f"norm of W − V, {method}", name=name, bound=bound, draw=draw)


def _kept_setting(n: int, m: int, p: float, law: Law, method: Method) -> Setting:
    """‖V‖ of one layer against its threshold."""

    def bound(delta: float) -> float:
        return layer_norm(n, m, law, delta, method=method, density=p, part="kept").value

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return _norms(_prune(_matrices(law, count, n, m, generator), p, method, generator))

    name = f"{n} × {m}, density {p:g}, {law.kind}"
    return Setting(kind=f"norm of V, {method}", name=name, bound=bound, draw=draw)


def _norms(matrices: Tensor) -> Tensor:
    """Spectral norms of a batch, to eight digits."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    values: Tensor = torch.linalg.eigvalsh(wide @ wide.mT)[:, -1].clamp_min(0).sqrt()
    return values


def _drawn_network(
    widths: tuple[int, ...], p: float, preset: str, method: Method, count: int,
    generator: torch.Generator,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    pairs = []
    for m, n in itertools.pairwise(widths):
        weights = _matrices(laws.PRESETS[preset](n, m), count, n, m, generator)
        pairs.append((weights, _prune(weights, p, method, generator)))
    return pairs


def _linear_setting(widths: tuple[int, ...], p: float, preset: str, method: Method) -> Setting:
    """sup ‖F − f‖ of a deep linear network, where it is exactly the norm of a difference."""

    def bound(delta: float) -> float:
        return sup_bound(
            widths, p, laws=preset, activations="identity", method=method, delta=delta
        ).value

    def draw(count: int, generator: torch.Generator) -> Tensor:
        pairs = _drawn_network(widths, p, preset, method, count, generator)
        dense, pruned = pairs[0]
        for weights, others in pairs[1:]:
            dense, pruned = weights @ dense, others @ pruned
        return _norms(dense - pruned)

    name = f"{'-'.join(map(str, widths))}, density {p:g}, {preset}"
    return Setting(kind=f"sup, deep linear, {method}", name=name, bound=bound, draw=draw)


def _square_setting(widths: tuple[int, ...], p: float, preset: str, method: Method) -> Setting:
    """‖F(x) − f(x)‖ of a ReLU network at one input against √(mean square bound / δ)."""

    def bound(delta: float) -> float:
        found = mean_square_bound(widths, p, laws=preset, activations="relu", method=method)
        return markov_gap(found, delta)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        pairs = _drawn_network(widths, p, preset, method, count, generator)
        dense = torch.ones(count, widths[0], 1, dtype=torch.float64) / math.sqrt(widths[0])
        pruned = dense
        for i, (weights, others) in enumerate(pairs):
            dense, pruned = weights @ dense, others @ pruned
            if i + 1 < len(pairs):
                dense, pruned = dense.relu(), pruned.relu()
        gaps: Tensor = (dense - pruned).flatten(1).norm(dim=1)
        return gaps

    name = f"{'-'.join(map(str, widths))}, density {p:g}, {preset}"
    return Setting(kind=f"mean square and Markov, {method}", name=name, bound=bound, draw=draw)


def _mask_setting(profile: str, p: float, rescaled: bool) -> Setting:
    """‖W − V‖ over masks of one given matrix."""
    generator = generator_for(0, "coverage weights", profile)
    w = torch.randn(15, 22, dtype=torch.float64, generator=generator)
    densities = torch.full_like(w, p)
    if profile == "heavy rows":
        w[:2] *= 6
    elif profile == "band":
        w = w * ((torch.arange(15)[:, None] - torch.arange(22)).abs() < 4)
    elif profile == "positive":
        w = w.abs()
    else:
        own = torch.rand(15, 22, dtype=torch.float64, generator=generator)
        densities = (p + (1 - p) * own).clamp(0.1, 0.99)

    def bound(delta: float) -> float:
        return drawn_norm(w, densities, delta, rescaled=rescaled).value

    def draw(count: int, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(count, 15, 22, dtype=torch.float64, generator=generator)
        pruned = w * (uniform < densities)
        pruned = pruned / densities if rescaled else pruned
        return _norms(w - pruned)

    kind = f"mask of given weights, {'rescaled' if rescaled else 'unscaled'}"
    return Setting(kind=kind, name=f"{profile}, density {p:g}", bound=bound, draw=draw)


def coverage(
    draws: int,
    *,
    seed: int,
    delta: float = 0.1,
    every: int = 1,
    progress: bool | None = None,
) -> list[Row]:
    """Violations per kind of bound, and the share of controls that are caught.

    Args:
        draws: per setting, of those that count; as many again give the quantile.
        seed: of all draws.
        delta: failure probability of every bound.
        every: take each `every`-th setting.
        progress: see `prunus.progress.progress_bar`.

    Returns:
        one row per kind: `settings`, `failed` (settings whose violations are beyond the binomial
        quantile 1 − `FALSE_ALARM`), `worst` share of violations, `controls`, `caught`, and
        `ratios`, bound / measured (1 − δ) quantile of every setting.
    """
    limit = int(stats.binom.isf(FALSE_ALARM, draws, delta))
    kinds: dict[str, dict[str, Any]] = {}
    for setting in track(list(settings())[::every], "coverage", progress=progress):
        row = kinds.setdefault(
            setting.kind,
            {"settings": 0, "failed": 0, "worst": 0.0, "controls": 0, "caught": 0, "ratios": []},
        )
        generator = generator_for(seed, "coverage", setting.kind, setting.name)
        seen = setting.draw(2 * draws, generator).numpy()
        first, second = seen[:draws], seen[draws:]
        bound = setting.bound(delta)
        violations = int((second > bound).sum())
        row["settings"] += 1
        row["failed"] += violations > limit
        row["worst"] = max(row["worst"], violations / draws)
        quantile = float(np.quantile(first, 1 - delta))
        control = 0.9 * float(np.quantile(first, 1 - 2 * delta))
        if quantile > 0:
            row["ratios"].append(bound / quantile)
        if control > 0:  # a few weights of a small matrix may not be hit at all
            row["controls"] += 1
            row["caught"] += int((second > control).sum()) > limit
    return [{"kind": kind, **row} for kind, row in kinds.items()]
