"""What a sensitivity scan answers: a row per layer and density, a picture, a plan."""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from prunus.budget import RESOURCES, Budget, Counts, Plan, checked_density
from prunus.files import Row
from prunus.recipe import Recipe
from prunus.rows import RowSet

__all__ = ["SensitivityScan"]

PLANNABLE = ("density", *(name for name in RESOURCES if name != "latency"), "drop")


@dataclass(frozen=True, eq=False, kw_only=True)
class SensitivityScan:
    """What `evaluate` says of networks in which one layer (or group of channels) alone is pruned.

    Attributes:
        records: one dict per layer and density: `layer`, `density` as asked, `kept` (its entry of
            a plan), `value` of the metric, `loss` (how much worse than dense, in the metric's
            unit; infinite where the value is NaN), the network's `parameters`, `macs` and `bytes`,
            and `weights`, kept of the selected ones.
        dense: what `evaluate` said of the dense network.
        metric: the metric that is shown.
        higher: True where a larger metric is better.
        recipe: what pruned.
        price: {plan's entries: cost}, of any plan by the recipe.
        data_fingerprint: hash of the calibration data, or None where the recipe reads none.
        samples: how many samples calibrated, or None.
        rows: the samples that calibrated, or that `evaluate` read, of which plans know.
    """

    records: Sequence[Row]
    dense: Mapping[str, float]
    metric: str
    higher: bool
    recipe: Recipe
    price: Callable[[Mapping[str, Counts]], Mapping[str, float]]
    data_fingerprint: str | None = None
    samples: int | None = None
    rows: RowSet | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        layers = dict.fromkeys(r["layer"] for r in self.records)
        return (
            f"SensitivityScan({len(layers)} layers × {len(self.records) // len(layers)} densities, "
            f"{self.metric} {self.dense[self.metric]:.4g} dense; .summary(), .plan(budget), "
            f".report(path))"
        )

    def table(self) -> list[Row]:
        """A row per layer, the most sensitive first, with the metric at every density."""
        rows: dict[str, Row] = {}
        worst: dict[str, float] = {}
        for r in self.records:
            rows.setdefault(r["layer"], {"layer": r["layer"]})[f"{r['density']:g}"] = r["value"]
            worst[r["layer"]] = max(worst.get(r["layer"], r["loss"]), r["loss"])
        return sorted(rows.values(), key=lambda row: -worst[row["layer"]])

    def summary(self) -> str:
        """The table as text: layers down, densities across."""
        rows = self.table()
        heads = list(dict.fromkeys(key for row in rows for key in row))
        better = "higher" if self.higher else "lower"
        lines = [
            f"{self.metric} with one layer pruned; dense {self.dense[self.metric]:.4g}, {better} "
            f"is better; the most sensitive first"
        ]
        cells = [heads, *([str(_number(row.get(h))) for h in heads] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
        for row in cells:
            first, *rest = (cell.rjust(w) for cell, w in zip(row, widths, strict=True))
            lines.append("  ".join([first.strip().ljust(widths[0]), *rest]))
        return "\n".join(lines)

    def plan(self, budget: float | Budget) -> Plan:
        """How much each layer keeps for the least sum of the losses seen, within a budget.

        Layers go down their densities along the lower hull of loss against cost, the cheapest step
        first; what the plan costs is counted in truth, not added up. That losses add is assumed:
        evaluate what comes out.

        Args:
            budget: a density, or a `Budget` of density, parameters, macs, bytes, or of the scan's
                metric and how far it may drop.

        Returns:
            a `Plan` for `prune(model, recipe, plan)`.

        Raises:
            ValueError: another target, another metric, or a budget below what the lowest densities
                reach.
        """
        asked = budget if isinstance(budget, Budget) else Budget(density=checked_density(budget))
        if asked.target not in PLANNABLE:
            raise ValueError(
                f"A scan plans for {', '.join(PLANNABLE)}, got a budget of {asked.target}."
            )
        if asked.metric not in (None, self.metric):
            raise ValueError(
                f"The scan is of {self.metric!r}, got a budget of {asked.metric!r}. Scan with "
                f"metric={asked.metric!r}."
            )
        what = "weights" if asked.target in ("density", "drop") else asked.target
        full = self.price({})
        steps = sorted(
            (step for own in self._by_layer().values() for step in _hull(own, full[what], what)),
            key=lambda step: step[0],
        )
        if asked.drop is not None:
            kept = self._within(asked.drop, [record for _, record in steps])
            spent = self._lost(kept)
        else:
            kept, spent = self._below(asked, what, [record for _, record in steps])
        lost = self._lost(kept)
        note = (
            f"{self.metric} is {abs(lost):.4g} {'worse' if lost >= 0 else 'better'} if the layers' "
            f"losses add up"
        )
        return Plan(
            kept=kept,
            density=self.price(kept)["weights"] / full["weights"],
            limit=asked.value,
            kind=asked.target,
            value=spent / full["weights"] if asked.target == "density" else spent,
            notes=(note,),
            rows=self.rows,
        )

    def _below(
        self, asked: Budget, what: str, steps: Sequence[Row]
    ) -> tuple[dict[str, Counts], float]:
        """As many steps as the budget needs, and what is spent then."""
        full = self.price({})
        limit = asked.value * (full["weights"] if what == "weights" else 1)
        kept: dict[str, Counts] = {}
        spent = full[what]
        for record in steps:
            if spent <= limit:
                break
            kept[record["layer"]] = record["kept"]
            spent = self.price(kept)[what]
        if spent > limit:
            raise ValueError(
                f"The densities scanned reach a {asked.target} of "
                f"{spent / full['weights'] if what == 'weights' else spent:.4g} at the least, "
                f"and {asked.value:.4g} was asked for. Scan lower densities."
            )
        return kept, spent

    def _within(self, drop: float, steps: Sequence[Row]) -> dict[str, Counts]:
        """As many steps, in their order, as lose no more than `drop` together."""
        kept: dict[str, Counts] = {}
        for record in steps:
            further = {**kept, record["layer"]: record["kept"]}
            if self._lost(further) > drop:
                break
            kept = further
        return kept

    def _lost(self, kept: Mapping[str, Counts]) -> float:
        """The sum of the losses seen at these entries of a plan."""
        seen = {r["layer"]: r["loss"] for r in self.records if kept.get(r["layer"]) == r["kept"]}
        return float(sum(seen.values()))

    def _by_layer(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for record in self.records:
            found.setdefault(record["layer"], []).append(record)
        return found

    def chart(self) -> Any:  # an altair.Chart, whose library need not be there
        """A curve per layer: the metric against the layer's density; needs the extra `report`."""
        from prunus.report.sensitivity import scan_chart

        return scan_chart(self)

    def report(self, path: str | os.PathLike[str], *, made: str | None = None) -> Path:
        """Write one self-contained HTML page; needs the extra `report`.

        Args:
            path: of the page.
            made: the date in its foot; today's where None.
        """
        from prunus.report.sensitivity import write_scan

        return write_scan(self, path, made=made)

    def _repr_html_(self) -> str:
        from prunus.report.views import scan_html

        return scan_html(self)

    def save_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the records as CSV."""
        from prunus.files import write_text

        text = io.StringIO()
        names = [key for key in self.records[0] if key != "kept"]
        writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return write_text(path, text.getvalue())


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _hull(records: Sequence[Row], full: float, what: str) -> list[tuple[float, Row]]:
    """Steps down one layer's lower convex hull of loss against what is saved, with their slopes."""
    points = sorted(((full - r[what], r["loss"], r) for r in records), key=lambda p: p[:2])
    hull, taken = [(0.0, 0.0)], list[Row]()
    for saved, loss, record in points:
        new = (saved, loss)
        if saved <= hull[-1][0]:
            continue
        while taken and _slope(hull[-1], new) <= _slope(hull[-2], hull[-1]):
            hull.pop()
            taken.pop()
        hull.append(new)
        taken.append(record)
    slopes = [_slope(one, other) for one, other in pairwise(hull)]
    return list(zip(slopes, taken, strict=True))


def _slope(start: tuple[float, float], end: tuple[float, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
