"""What a comparison answers: a record of every pruning, and tables of them."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prunus.files import Row
from prunus.means import mean, standard_error
from prunus.recipe import Recipe
from prunus.result import Pruned

__all__ = ["Comparison"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Records of many prunings of one model.

    Attributes:
        records: one flat dict per pruning: `recipe`, `density` as asked and `density_met`, `seed`,
            what `evaluate` said before and after, parameters, macs, bytes, errors and densities
            of layers, times; `run`, its name in the file where there is one.
        dense: what `evaluate` said of the dense model.
        metric: the metric that tables and figures show.
        recipes: the recipes by the names used in the records.
        latencies: for node recipes, the measured latency of dense and compact networks.
        pictures: pruned networks kept for drawing, by (recipe, density).
        data_fingerprint: hash of the calibration data, or None.
        samples: how many samples calibrated, or None.
    """

    records: Sequence[Row]
    dense: Mapping[str, float]
    metric: str
    recipes: Mapping[str, Recipe]
    latencies: Sequence[Row] = field(default_factory=list)
    pictures: Mapping[tuple[str, float], Pruned] = field(default_factory=dict, repr=False)
    data_fingerprint: str | None = None
    samples: int | None = None

    def __repr__(self) -> str:
        """A line for the terminal; `summary()` has the table."""
        densities = dict.fromkeys(str(record["density"]) for record in self.records)
        return (
            f"Comparison({len(self.recipes)} recipes × {len(densities)} densities, "
            f"{len(self.records)} runs, {self.metric} {self.dense[self.metric]:.4g} dense; "
            f".summary(), .report(path))"
        )

    def table(self) -> list[Row]:
        """Mean and standard error over seeds of the metric, a row per recipe and density.

        Where a score is NaN or infinite so is the mean, and there is no standard error.
        """
        rows: dict[tuple[str, float | str], list[float]] = {}
        met: dict[tuple[str, float | str], list[float]] = {}
        for record in self.records:
            key = (record["recipe"], record["density"])
            rows.setdefault(key, []).append(float(record[self.metric]))
            met.setdefault(key, []).append(float(record["density_met"]))
        return [
            {
                "recipe": recipe,
                "density": density,
                "density_met": mean(met[recipe, density]),
                self.metric: mean(values),
                "standard_error": standard_error(values),
                "seeds": len(values),
                "dense": self.dense[self.metric],
            }
            for (recipe, density), values in rows.items()
        ]

    def headline(self) -> str:
        """How far one may prune, by which recipe, and what is not told apart from it."""
        from prunus.report.headline import comparison_headline

        rows = [{**r, "score": r[self.metric]} for r in self.records]
        return " ".join(comparison_headline(rows, self.metric, self.dense[self.metric]))

    def summary(self) -> str:
        """The metric by recipe and density, as a text table."""
        from prunus.report.summary import comparison_summary

        return comparison_summary(self)

    def _repr_html_(self) -> str:
        from prunus.report.views import comparison_html

        return comparison_html(self)

    def save_records(self, path: str | os.PathLike[str]) -> Path:
        """Write the records as JSON lines; NaN and infinity stand as "NaN" and "Infinity"."""
        from prunus.files import named_numbers, write_text

        lines = [
            json.dumps(named_numbers(record), sort_keys=True, allow_nan=False)
            for record in self.records
        ]
        return write_text(path, "\n".join(lines) + "\n")

    def report(self, path: str | os.PathLike[str], *, made: str | None = None) -> Path:
        """Write one self-contained HTML page; needs the extra `report`.

        Args:
            path: of the page.
            made: the date in its foot; today's where None.
        """
        from prunus.report.comparison import write_comparison

        return write_comparison(self, path, made=made)
