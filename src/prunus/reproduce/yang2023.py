"""Pruning at initialisation in the setting of Yang et al.: gain, collapse, and what makes them."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from prunus.files import Row
from prunus.report.at_init import accuracy_figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.yang2023_figures import certificate_curves, learning_curves, phase_maps
from prunus.reproduce.yang2023_runs import SMALL_START, Runs, mean, strong, summarised
from prunus.theory.at_init import (
    DensitySummary,
    Setting,
    Simulation,
    generalisation_bound,
    over_pruned_probability,
    p_over,
    predict,
    retention,
)

__all__ = ["reproduce"]

A = SMALL_START  # as the paper's experiments are called here
GAIN = "(i) improves"
COLLAPSE = "(ii) guesses"
FEATURES = "(iii) features change"
OURS = "-"  # a control of our own, no claim of the paper
CLAIMS = (
    "claims of the paper's abstract: (i) generalisation improves as the pruned fraction grows, up "
    "to a threshold; (ii) beyond it training loss goes to 0, yet the network is no better than "
    "random guessing; (iii) pruning changes the feature-learning process"
)
EXPERIMENTS = (
    "experiments: A small first weights, C as A with m = 100, B as A with σ_0 = 0.01 (lazy), "
    "B control dense with σ_0 √p, A8 as A with μ = 8; support s: the class mean on s coordinates"
)


def reproduce(
    *, scale: Scale, seed: int, data_dir: Path | None = None, progress: bool | None = None
) -> Reproduction:
    """Experiments A, B, C, support and asymptotic, beside the claims of the abstract.

    Args:
        scale: "small" runs 5 seeds in about a minute; "full" 20 seeds and finer densities.
        seed: of all draws.
        data_dir: not needed; the data are drawn.
        progress: see `prunus.progress.progress_bar`.
    """
    del data_dir
    full = scale == "full"
    seeds = 20 if full else 5
    found = Runs(seed, seeds, progress)
    rows: list[Row] = []
    fine = [1, 0.8, 0.6, 0.45, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02, 0.01, 0.002, 6e-4]
    coarse = [1, 0.6, 0.35, 0.25, 0.12, 0.05, 0.01, 6e-4]
    wide = [1, 0.6, 0.35, 0.25, 0.18, 0.12, 0.05, 0.01, 6e-4]
    a = found.run("A", A, fine if full else coarse)
    c = found.run("C", dataclasses.replace(A, neurons=100), wide)
    lazy = dataclasses.replace(A, init_scale=1e-2)
    b = found.run("B", lazy, [1, 0.45, 0.25, 0.12, 0.05, 0.03, 0.01, 6e-4])
    rows += _accuracy_rows("A", a)
    rows += _accuracy_rows("C", c)
    rows += _accuracy_rows("B", b)
    rows += _rescaled_rows(found, lazy, b)
    rows += _growth_rows(a)
    rows += _support_rows(found)
    rows += _certificate_rows(found)
    rows += _asymptotic_rows(found, full)
    charts = {
        "at-init-accuracy": accuracy_figure(
            {
                "A: m = 50, small first weights": (A, summarised(a)),
                "C: m = 100": (c.setting, summarised(c)),
                "B: m = 50, lazy": (lazy, summarised(b)),
            }
        ),
        "at-init-learning": learning_curves(found),
        "at-init-certificate": certificate_curves(found),
        "at-init-phase": phase_maps("noise", 0.5, 2.0, full, seed, progress),
        "at-init-phase-width": phase_maps("neurons", 6, 100, full, seed, progress),
    }
    return Reproduction(
        name="yang2023",
        title="Random pruning at initialisation, in the setting of Yang et al.",
        paper=(
            "Yang, Liang, Guo, Wu, Wang (2025), Random pruning over-parameterized neural networks "
            "can improve generalization: a training dynamics analysis, JMLR 26(84) "
            "(arXiv 2301.00335, 2023): the claims of its abstract"
        ),
        conditions=(
            CLAIMS,
            EXPERIMENTS,
            f"{seeds} seeds; one seed fixes data, first weights, mask uniforms and test draws for "
            "all densities (nested masks), so gains are paired",
            "n = 60, d = 4096, K = 4, μ = 6, σ_n = 1, σ_0 = 1e-4, 150 steps of full-batch gradient "
            "descent at lr 2 (step size scaled by the curvature), where not said otherwise",
            "theory: our closed form (heuristic; out of range where it is not to be relied on) "
            "unless the column says proved; the paper's theorems and constants are not used",
            "B: a dense network with first weights scaled by √density gains as well, so there the "
            "gain is one of a smaller start; in A smaller first weights gain nothing",
            "d = 1e7: the dimension-free reduced level (heuristic) at d = 1e7",
        ),
        rows=rows,
        figures=charts,
    )


def _row(
    experiment: str,
    quantity: str,
    density: float | None,
    claim: str,
    theory: float | None,
    status: str,
    measured: float,
    error: float | None,
    note: str = "",
) -> dict[str, Any]:
    return {
        "experiment": experiment,
        "quantity": quantity,
        "density": density,
        "published claim": claim,
        "theory": theory,
        "status": status,
        "measured": measured,
        "standard error": error,
        "note": note,
    }


def _accuracy_rows(experiment: str, run: Simulation) -> list[Row]:
    """Accuracy per density with paired gain; the proved bound where pruning destroys."""
    over = p_over(run.setting.classes, run.setting.neurons, run.setting.dimension)
    dense = predict(run.setting, 1.0).accuracy
    rows = []
    for row in summarised(run):
        ruined = row.density <= over
        claim = COLLAPSE if ruined else _claim(row, dense)
        gain = (
            ""
            if row.gain is None or row.density == 1
            else (f"gain {row.gain:+.3f}" + (f" ({row.gain_error:.3f})" if row.gain_error else ""))
        )
        rows.append(
            _row(
                experiment,
                "test accuracy",
                row.density,
                claim,
                row.predicted,
                "heuristic" if row.valid else "out of range",
                row.accuracy,
                row.accuracy_error,
                f"{gain}{', ' if gain else ''}train loss {row.train_loss:.4f}, "
                f"train acc {row.train_accuracy:.3f}, test loss {row.test_loss:.2f}",
            )
        )
        if ruined:
            blind = over_pruned_probability(row.density, run.setting.classes, run.setting.neurons)
            rows.append(
                _row(
                    experiment,
                    "mean accuracy at most",
                    row.density,
                    COLLAPSE,
                    row.accuracy_bound,
                    "proved",
                    row.accuracy,
                    row.accuracy_error,
                    f"P(no class visible) = {blind:.2f}",
                )
            )
    return rows


def _claim(row: DensitySummary, dense: float) -> str:
    """Claim (i) where the closed form expects a gain over the dense network."""
    better = row.density < 1 and row.predicted is not None and row.predicted > dense
    return GAIN if better else OURS


def _rescaled_rows(found: Runs, lazy: Setting, pruned: Simulation) -> list[Row]:
    """The control of B: dense networks whose first weights are √p times smaller."""
    rows = []
    for density in (0.25, 0.05):
        setting = dataclasses.replace(lazy, init_scale=lazy.init_scale * math.sqrt(density))
        control = found.run(f"control {density}", setting, [1.0]).test_accuracy[0]
        middle, error = mean(control)
        own, _ = mean(pruned.test_accuracy[pruned.densities.index(density)])
        rows.append(
            _row(
                "B control",
                "test accuracy",
                density,
                OURS,
                predict(setting, 1.0).accuracy,
                "heuristic",
                middle,
                error,
                f"pruned to {density:g}: {own:.3f}",
            )
        )
    return rows


def _growth_rows(run: Simulation) -> list[Row]:
    """Coefficients at the end of training: the signal grows as the noise is shared out."""
    rows = []
    for density in (1.0, 0.25):
        i = run.densities.index(density)
        theory = predict(run.setting, density, train_loss=float(run.train_loss[i].mean()))
        for name, value, title in (
            ("signal_own", theory.signal, "signal, signal neurons"),
            ("noise_signal_neurons", theory.noise_signal_neurons, "noise, signal neurons"),
            ("noise_only_neurons", theory.noise_only_neurons, "noise, noise-only neurons"),
        ):
            values = run.trajectory[name][i, :, -1]
            if not bool(torch.isnan(values).any()):
                middle, error = mean(values)
                rows.append(_row("A", title, density, FEATURES, value, "heuristic", middle, error))
    return rows


def _support_rows(found: Runs) -> list[Row]:
    """The gain needs sparse signals; dense supports follow the retention law."""
    rows = []
    for support in (1, 2, 4, 16, 64):
        setting = dataclasses.replace(A, support=support)
        run = found.run(f"support {support}", setting, [1.0, 0.6, 0.35, 0.2, 0.1])
        dense, *pruned = summarised(run)
        for row in pruned:
            kept = retention(row.density, row.density * A.neurons)
            assert row.gain is not None
            closed = None
            if row.predicted is not None and dense.predicted is not None:
                closed = row.predicted - dense.predicted
            rows.append(
                _row(
                    f"support {support}",
                    "gain over dense",
                    row.density,
                    OURS,
                    closed,
                    "" if closed is None else "heuristic",
                    row.gain,
                    row.gain_error,
                    f"SNR² retained {kept:.3f} (heuristic law for many coordinates)",
                )
            )
    return rows


def _certificate_rows(found: Runs) -> list[Row]:
    """μ = 8: the error, the proved certificate of the trained weights, the a-priori curve."""
    run = strong(found)
    rows = []
    for i, density in enumerate(run.densities):
        error, spread = mean(1 - run.test_accuracy[i])
        certificate, _ = mean(run.certificate[i])
        loss = float(run.train_loss[i].mean())
        bound = generalisation_bound(run.setting, density, train_loss=loss)
        held = bool((run.certificate[i] >= 1 - run.test_accuracy[i]).all())
        note = f"a-priori curve B(p) {bound:.4f} (heuristic); " + (
            "certificate holds in every run" if held else "CERTIFICATE BROKEN"
        )
        claim = OURS if density == 1 else GAIN
        rows.append(
            _row("A8", "test error at most", density, claim, certificate, "proved", error,
                 spread, note)
        )  # fmt: skip
    return rows


def _asymptotic_rows(found: Runs, full: bool) -> list[Row]:
    """d = 1e7: where random guessing is certain."""
    cases = [Setting(neurons=100, dimension=10**7, signal=40.4, init_scale=1e-6)]
    if full:
        cases.append(
            Setting(classes=10, samples=120, neurons=100, dimension=10**7, signal=52.3,
                    init_scale=1e-6)
        )  # fmt: skip
    rows = []
    for setting in cases:
        over = p_over(setting.classes, setting.neurons, setting.dimension)
        run = found.run(
            f"asymptotic {setting.classes}",
            setting,
            [1.0, 0.18, 0.05, 0.01, 1e-3, over],
            engine="reduced",
            steps=200,
            seeds=found.seeds[:5],
        )
        dense = predict(setting, 1.0).accuracy
        for row in summarised(run):
            ruined = row.density == over
            note = f"train loss {row.train_loss:.4f}, test loss {row.test_loss:.3f}"
            if ruined:
                note += f" (log K = {math.log(setting.classes):.3f})"
            rows.append(
                _row(
                    f"d = 1e7, K = {setting.classes}",
                    "test accuracy",
                    row.density,
                    COLLAPSE if ruined else _claim(row, dense),
                    row.predicted,
                    "heuristic" if row.valid else "out of range",
                    row.accuracy,
                    row.accuracy_error,
                    note,
                )
            )
    return rows
