"""How tight the gap statements are: layers, networks before and after training, coverage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunus.files import Row, Rows
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.gap_coverage import FALSE_ALARM, coverage
from prunus.reproduce.gap_digits import (
    design_rows,
    digits_networks,
    magnitude_rows,
    rescaled_rows,
)
from prunus.reproduce.gap_layers import convolution_rows, layer_curve, layer_rows
from prunus.reproduce.gap_networks import network_rows, width_rows

__all__ = ["reproduce"]

COLUMNS = ("part", "setting", "bound", "value", "measured", "ratio", "prototype", "prototype value")


def reproduce(
    *, scale: Scale, seed: int, data_dir: Path | None = None, progress: bool | None = None
) -> Reproduction:
    """Ratios of bound to measurement, and the count of violations over seeded settings.

    Args:
        scale: "small" takes a minute or two; "full" has wider layers and networks and more draws.
        seed: of all draws and trainings.
        data_dir: not needed; the digits come with scikit-learn, all else is drawn.
        progress: see `prunus.progress.progress_bar`.
    """
    del data_dir
    full = scale == "full"
    layers = layer_rows(full=full, seed=seed, progress=progress)
    names = ["relu2", "relu3", "tanh3", "relu5", "cnn"] if full else ["relu2", "cnn"]
    nets = digits_networks(names, seed=seed, progress=progress)
    rows = [
        *layers,
        *convolution_rows(full=full, seed=seed, progress=progress),
        *network_rows(full=full, seed=seed, progress=progress),
        *width_rows(progress=progress),
        *rescaled_rows(nets, full=full, seed=seed, progress=progress),
        *magnitude_rows(nets, seed=seed, progress=progress),
        *design_rows(nets, full=full, seed=seed, progress=progress),
    ]
    rows += _medians(rows)
    counted = coverage(400, seed=seed, every=1 if full else 7, progress=progress)
    rows += [_coverage_row(row) for row in counted]
    rows.append(_coverage_total(counted))
    records = layer_curve([row for row in layers if row["n"] == 100])
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
        title="Tightness and coverage of the gap statements",
        paper="Qian & Klabjan (2021), A probabilistic approach to neural network pruning: the "
        "question; the constants are ours",
        conditions=(
            "prototype: ratio (and value) that an earlier, independent implementation of the same "
            "theorems found; its own draws and its own trained networks",
            "layer: δ = 0.05, uniform weights of unit variance, each present with probability q; "
            "the truth is the measured 95 % quantile",
            "network: δ = 0.05, variance 2/fan-in (relu) or 1/fan-in (tanh), uniform (U) or normal "
            "(N), inputs in the unit ball, 10 outputs; the true sup is the mean over draws of the "
            "largest gap found by gradient ascent, a lower bound of the sup",
            "minimal width: uniform ±1/√d, ⌊N^(1−α)⌋ of N = d² weights of each layer pruned, "
            "largest gap over the unit ball ≤ 0.1, δ = 0.05",
            "Latała's constant is unspecified and taken as 1: those rows are a shape, not a bound",
            "digits: δ = 0.05, ball around 0 that covers all inputs; sup found by ascent",
            f"coverage: δ = 0.1 per setting; a setting fails beyond the {1 - FALSE_ALARM:.1%} "
            "quantile of the binomial count of violations; control: 0.9 × the measured 80 % "
            "quantile, of other draws, taken as a bound",
        ),
        rows=[{key: row.get(key) for key in COLUMNS} for row in rows],
        figures={"gap-tightness-layer": (chart, records)},
    )


def _medians(rows: Rows) -> list[Row]:
    """Median ratio of every kind of bound over the rows that the prototype has, too."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("prototype") is not None and not row["part"].startswith("digits, designs"):
            name = row["bound"].split(" of ")[-1] if "simulated" in row["bound"] else row["bound"]
            kinds.setdefault(f"{row['part']}: {name}", []).append((row["ratio"], row["prototype"]))
    return [
        {
            "part": "median ratio",
            "setting": kind,
            "bound": f"{len(pairs)} settings",
            "ratio": float(np.median([ours for ours, _ in pairs])),
            "prototype": float(np.median([theirs for _, theirs in pairs])),
        }
        for kind, pairs in kinds.items()
    ]


def _coverage_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "part": "coverage",
        "setting": f"{row['kind']}: {row['settings']} settings, {row['failed']} failed, controls "
        f"caught {row['caught']} of {row['controls']}",
        "bound": f"90 % of ratios below {np.quantile(row['ratios'], 0.9):.3g}",
        "value": row["failed"],
        "measured": row["worst"],
        "ratio": float(np.median(row["ratios"])),
    }


def _coverage_total(rows: Rows) -> dict[str, Any]:
    totals = {
        key: sum(row[key] for row in rows) for key in ("settings", "failed", "caught", "controls")
    }
    norms = [r for row in rows if row["kind"].startswith("norm of") for r in row["ratios"]]
    return _coverage_row(
        {
            "kind": "all together (ratios of the layer norms)",
            "worst": max(row["worst"] for row in rows),
            "ratios": norms,
            **totals,
        }
    ) | {"prototype": 1.13}
