"""Pictures of pruning at initialisation: accuracy over density, and phase diagrams."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prunus.files import Row
from prunus.report.charts import filling
from prunus.report.figure import figure
from prunus.report.footing import footing
from prunus.report.headline import FEWEST
from prunus.report.heat_map import cells, heat_map
from prunus.report.page import Chart, Section, Table, page
from prunus.theory.at_init import (
    DensitySummary,
    PhaseDiagram,
    Setting,
    mean_accuracy_bound,
    p_over,
    predict,
)

__all__ = [
    "AXIS_TITLES",
    "accuracy_figure",
    "alignment_figure",
    "at_init_page",
    "phase_figure",
    "sweep_figure",
]

AXIS_TITLES = {
    "noise": "noise σ_n",
    "signal": "signal μ",
    "neurons": "neurons per class m",
    "classes": "classes K",
    "samples": "training points n",
    "init_scale": "first weights' scale σ_0",
}
CURVE = 40  # densities at which curves are evaluated
CLOSED = "closed form (heuristic)"
UNRELIABLE = "closed form out of its range"


def accuracy_figure(
    experiments: Mapping[str, tuple[Setting, Sequence[DensitySummary]]],
) -> tuple[Any, list[Row]]:
    """Measured accuracy with its standard error, the closed form and the proved bound.

    Args:
        experiments: {panel title: (setting, summaries)}; one panel each.

    Returns:
        the chart, and the tidy records it draws.
    """
    records: list[Row] = []
    for panel, (setting, rows) in experiments.items():
        loss = math.exp(sum(math.log(row.train_loss) for row in rows) / len(rows))
        low = math.log(min(row.density for row in rows))
        curve = [math.exp(low * i / (CURVE - 1)) for i in range(CURVE)]
        for row in rows:
            error = row.accuracy_error or 0.0
            records.append(
                {
                    "panel": panel,
                    "density": row.density,
                    "accuracy": row.accuracy,
                    "low": max(0.0, row.accuracy - error),
                    "high": min(1.0, row.accuracy + error),
                    "series": "measured, mean ± standard error",
                    "kind": "measured",
                }
            )
        for density in curve:
            if setting.support == 1:
                closed = predict(setting, density, train_loss=loss)
                series = CLOSED if closed.valid else UNRELIABLE
                records.append(_point(panel, density, closed.accuracy, series, "theory"))
            bound = mean_accuracy_bound(density, setting.classes, setting.neurons, setting.support)
            series = "upper bound on the mean (proved)"
            records.append(_point(panel, density, bound, series, "bound"))
    chart = figure(
        records,
        x="density",
        y="accuracy",
        x_title="density (kept / total)",
        y_title="test accuracy",
        x_scale="log",
        facet="panel" if len(experiments) > 1 else None,
    )
    return chart, records


def at_init_page(
    setting: Setting, rows: Sequence[DensitySummary], *, seeds: int, made: str | None = None
) -> str:
    """The HTML text of a simulation: how far pruning is safe, the picture, the numbers.

    Args:
        setting: the model that was simulated.
        rows: from `summarise`, one per density.
        seeds: how many networks of each density.
        made: the date in its foot; today's where None.
    """
    chart, records = accuracy_figure({"": (setting, rows)})
    table = [
        {
            "density": row.density,
            "accuracy": _share(row.accuracy),
            "± standard error": None if row.accuracy_error is None else _share(row.accuracy_error),
            "gain over dense": None if row.gain is None else f"{100 * row.gain:.2f} %",
            "closed form": None if row.predicted is None else _share(row.predicted),
            "to be relied on": row.valid,
            "bound on the mean": _share(row.accuracy_bound),
            "train accuracy, lowest": _share(row.train_accuracy),
        }
        for row in rows
    ]
    about = [{AXIS_TITLES.get(key, key): value for key, value in vars(setting).items()}]
    section = Section(
        "Accuracy over density",
        [
            Chart(
                "accuracy",
                filling(chart, 320),
                records,
                "Points: mean over seeds with its standard error. Solid: the closed form, averaged "
                "over masks, a heuristic. Dashed: a proved upper bound on the mean over masks.",
                shown=("series", "density", "accuracy", "low", "high"),
            ),
            Table("densities", table, "Measured, predicted and proved, by density."),
            Table("setting", about, "The simulated model."),
        ],
    )
    return page(
        "Pruning before training",
        [section],
        headline=_at_init_headline(setting, rows, seeds),
        footer=footing(made=made),
    )


def _at_init_headline(setting: Setting, rows: Sequence[DensitySummary], seeds: int) -> str:
    """How far accuracy holds, where it is lost, and where that is proved."""
    falling = sorted(rows, key=lambda row: -row.density)
    first = falling[0]
    said = f"At density {first.density:g} the trained network has {_share(first.accuracy)} accuracy"
    near = [row for row in falling if row.accuracy >= first.accuracy - 0.01]
    last = near[-1]
    if last.density < first.density:
        said += (
            f"; pruned before training it stays within a point of that down to density "
            f"{last.density:.3g} ({_share(last.accuracy)})"
        )
    worst = falling[-1]
    said += f". At {worst.density:.3g} it is {_share(worst.accuracy)}."
    if seeds < FEWEST:
        said += f" Too few seeds ({seeds}) to say how sure that is."
    over = p_over(setting.classes, setting.neurons, setting.dimension)
    sure = max(0.0, 1 - 1 / math.log(setting.dimension))
    return (
        f"{said} At {over:.3g} and below every class has lost the neurons of its signal with "
        f"probability at least {100 * sure:.0f} % (proved)."
    )


def _share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _point(panel: str, density: float, value: float, series: str, kind: str) -> dict[str, Any]:
    return {
        "panel": panel, "density": density, "accuracy": value, "series": series, "kind": kind,
    }  # fmt: skip


def phase_figure(diagrams: Mapping[str, PhaseDiagram]) -> tuple[Any, list[Row]]:
    """Phase diagrams side by side with the thresholds over them, and the records behind.

    Args:
        diagrams: {panel title: diagram}, all over the same axis and values.
    """
    records: list[Row] = []
    curves: list[Row] = []
    for title, diagram in diagrams.items():
        records += cells(
            title,
            diagram.densities,
            diagram.values,
            diagram.accuracy.tolist(),
            valid=diagram.valid.tolist(),
            x_log=True,
            y_log=True,
        )
    first = next(iter(diagrams.values()))
    drawn = {
        "p_over: no class seen with P ≥ 1 − K/log d (proved)": (first.p_over, "bound"),
        "p_keep: every class likely keeps its signal (proved)": (first.p_keep, "theory"),
        "log d / m (paper, order only)": (first.p_mild, "order"),
    }
    for series, (values, kind) in drawn.items():
        curves += [
            {"x": density, "y": value, "series": series, "kind": kind}
            for value, density in zip(first.values, values.tolist(), strict=True)
        ]
    curves += [
        {"x": density, "y": value, "series": "best density of the panel", "kind": "points",
         "panel": title}
        for title, diagram in diagrams.items()
        for value, density in zip(diagram.values, diagram.best.tolist(), strict=True)
    ]  # fmt: skip
    if first.unit_snr is not None:
        curves += [
            {"x": density, "y": first.unit_snr, "series": "ρ_0 = 1", "kind": "order"}
            for density in (min(first.densities), max(first.densities))
        ]
    chart = heat_map(
        records,
        curves,
        x_title="density (kept / total)",
        y_title=AXIS_TITLES[first.axis],
        value_title="test accuracy",
        domain=(1 / max(_classes(first)), 1.0),
        x_log=True,
        y_log=True,
    )
    return chart, records + curves


def _classes(diagram: PhaseDiagram) -> list[float]:
    return diagram.values if diagram.axis == "classes" else [diagram.setting.classes]


def sweep_figure(found: Any) -> tuple[Any, list[Row]]:
    """Gain over the dense network of the same seed for every method, and of the control.

    Args:
        found: what `prunus.bench.at_init.sweep` returns.

    Returns:
        the chart, and the tidy records it draws; bands are 95 % intervals of the paired gains
        (standard errors below 5 seeds).
    """
    records = []
    for cell in found.cells:
        if cell.density == 1:
            continue
        half = cell.gain_interval if cell.gain_interval is not None else cell.gain_error or 0.0
        records.append(
            {
                "density": cell.density,
                "gain": cell.gain,
                "low": cell.gain - half,
                "high": cell.gain + half,
                "accuracy": cell.accuracy,
                "alignment": cell.alignment,
                "series": cell.method,
                "kind": "measured",
            }
        )
    chart = figure(
        records,
        x="density",
        y="gain",
        x_title="density (kept / total)",
        y_title="gain in test accuracy over the dense network",
        x_scale="log",
    )
    return chart, records


def alignment_figure(found: Any) -> tuple[Any, list[Row]]:
    """How much trained first-layer units look at class means, over density, for every method.

    Args:
        found: what `prunus.bench.at_init.sweep` returns; the dense network stands at density 1.

    Returns:
        the chart, and the tidy records it draws; bands are 95 % intervals (none below 5 seeds).

    Raises:
        ValueError: no alignment is known, since the first layer does not see the inputs.
    """
    records: list[Row] = []
    for cell in sorted(found.cells, key=lambda c: c.density == 1):  # colours as in `sweep_figure`
        if cell.alignment is None:
            continue
        half = cell.alignment_interval or 0.0
        records.append(
            {
                "density": cell.density,
                "alignment": cell.alignment,
                "low": cell.alignment - half,
                "high": cell.alignment + half,
                "before training": cell.alignment_start,
                "series": cell.method,
                "kind": "measured",
            }
        )
    chart = figure(
        records,
        x="density",
        y="alignment",
        x_title="density (kept / total)",
        y_title="alignment with class means after training",
        x_scale="log",
    )
    return chart, records
