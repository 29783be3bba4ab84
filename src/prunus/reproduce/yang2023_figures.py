"""The figures of the reproduction of Yang et al.: learning, certificates, phases."""

import warnings
from typing import Any

import torch

from prunus.files import Row
from prunus.progress import track
from prunus.report.at_init import phase_figure
from prunus.report.figure import figure
from prunus.reproduce.yang2023_runs import SMALL_START, Runs, mean, strong
from prunus.rng import generator_for
from prunus.theory.at_init import generalisation_bound, phase_diagram, predict

__all__ = ["certificate_curves", "learning_curves", "phase_maps"]


def learning_curves(found: Runs) -> tuple[Any, list[Row]]:
    """How the signal and noise coefficients grow along training, dense and pruned."""
    run = found.run(
        "learning", SMALL_START, [1.0, 0.25, 6e-4], checkpoints=14, seeds=found.seeds[:5]
    )
    names = {
        "signal_own": "signal, signal neurons",
        "noise_signal_neurons": "noise, signal neurons",
        "noise_only_neurons": "noise, noise-only neurons",
    }
    records = []
    for i, density in enumerate(run.densities):
        for name, series in names.items():
            values = run.trajectory[name][i]
            for j, step in enumerate(run.checkpoints):
                column = values[:, j][~torch.isnan(values[:, j])]
                if len(column) < 2:
                    continue
                middle, error = mean(column)
                records.append(
                    {
                        "density": f"density {density:g}",
                        "step": step,
                        "coefficient": middle,
                        "low": middle - error,
                        "high": middle + error,
                        "series": series,
                        "kind": "measured",
                    }
                )
    chart = figure(
        records,
        x="step",
        y="coefficient",
        x_title="gradient step",
        y_title="coefficient",
        x_scale="log",
        facet="density",
        columns=3,
        width=240,
    )
    return chart, records


def certificate_curves(found: Runs) -> tuple[Any, list[Row]]:
    """Error, certificate and a-priori curve over density at μ = 8."""
    run = strong(found)
    records: list[Row] = []
    for i, density in enumerate(run.densities):
        error, spread = mean(1 - run.test_accuracy[i])
        certificate, _ = mean(run.certificate[i])
        at = {"density": density}
        records.append(
            {**at, "error": error, "low": max(error - spread, 1e-5), "high": error + spread,
             "series": "measured, mean ± standard error", "kind": "measured"}
        )  # fmt: skip
        records.append(
            {**at, "error": certificate, "series": "certificate of the weights (proved)",
             "kind": "bound"}
        )  # fmt: skip
    loss = float(run.train_loss.mean())
    for k in range(30):
        density = 0.05 ** (1 - k / 29)
        bound = generalisation_bound(run.setting, density, train_loss=loss)
        closed = 1 - predict(run.setting, density, train_loss=loss).accuracy
        series = "a-priori curve B(p) (heuristic)"
        records.append({"density": density, "error": bound, "series": series, "kind": "theory"})
        series = "closed form (heuristic)"
        records.append({"density": density, "error": closed, "series": series, "kind": "theory"})
    chart = figure(
        records,
        x="density",
        y="error",
        x_title="density (kept / total)",
        y_title="test error",
        x_scale="log",
        y_scale="log",
    )
    return chart, records


def phase_maps(
    axis: str, low: float, high: float, full: bool, seed: int, progress: bool | None
) -> tuple[Any, list[Row]]:
    """Density against noise or width from `low` to `high`, predicted and measured side by side."""
    n_values, n_densities, seeds = (10, 14, 6) if full else (5, 7, 2)
    values = [low * (high / low) ** (i / (n_values - 1)) for i in range(n_values)]
    if axis == "neurons":
        values = [round(value) for value in values]
    densities = [4e-4 ** (1 - i / (n_densities - 1)) for i in range(n_densities)]
    chosen = [int(generator_for(seed, "phase", i).initial_seed() % 2**31) for i in range(seeds)]
    diagrams = {"predicted (heuristic)": phase_diagram(SMALL_START, axis, values, densities)}
    for _ in track([0], f"Mapping phases over {axis}", progress=progress):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # over-pruned cells memorise late
            diagrams[f"measured, {seeds} seeds"] = phase_diagram(
                SMALL_START, axis, values, densities, engine="dual", seeds=chosen, progress=False
            )
    return phase_figure(diagrams)
