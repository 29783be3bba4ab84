"""`sensitivity`: what each layer alone costs, at every density, and a plan from it."""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunus.ambient import plainly, theirs
from prunus.budget import RESOURCES, Budget, Plan, checked_density
from prunus.calibration import Calibration
from prunus.calibration.batches import Batches
from prunus.cost import Cost
from prunus.engine.calibrated import data_for, shared_calibration
from prunus.engine.prune import prune
from prunus.engine.runs import as_metrics
from prunus.presets import resolve
from prunus.progress import progress_bar
from prunus.recipe import Recipe

__all__ = ["SensitivityScan", "sensitivity"]

PLANNABLE = ("density", *(name for name in RESOURCES if name != "latency"), "drop")


@dataclass(frozen=True, eq=False, kw_only=True)
class SensitivityScan:
    """What `evaluate` says of networks in which one layer (or group of channels) alone is pruned.

    Attributes:
        records: one dict per layer and density: `layer`, `density` as asked, `kept` (its entry of
            a plan), `value` of the metric, `loss` (how much worse than dense, in the metric's
            unit), the network's `parameters`, `macs` and `bytes`, and `weights`, kept of the
            selected ones.
        dense: what `evaluate` said of the dense network.
        metric: the metric that is shown.
        higher: True where a larger metric is better.
        recipe: what pruned.
        price: {plan's entries: cost}, of any plan by the recipe.
    """

    records: Sequence[Mapping[str, Any]]
    dense: Mapping[str, float]
    metric: str
    higher: bool
    recipe: Recipe
    price: Callable[[Mapping[str, Any]], Mapping[str, float]]

    def __repr__(self) -> str:
        layers = dict.fromkeys(r["layer"] for r in self.records)
        return (
            f"SensitivityScan({len(layers)} layers × {len(self.records) // len(layers)} densities, "
            f"{self.metric} {self.dense[self.metric]:.4g} dense; .summary(), .plan(budget), "
            f".report(path))"
        )

    def table(self) -> list[dict[str, Any]]:
        """A row per layer, the most sensitive first, with the metric at every density."""
        rows: dict[str, dict[str, Any]] = {}
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
        note = f"{self.metric} is {self._lost(kept):.4g} worse if the layers' losses add up"
        return Plan(
            kept=kept,
            density=self.price(kept)["weights"] / full["weights"],
            limit=asked.value,
            kind=asked.target,
            value=spent / full["weights"] if asked.target == "density" else spent,
            notes=(note,),
        )

    def _below(
        self, asked: Budget, what: str, steps: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], float]:
        """As many steps as the budget needs, and what is spent then."""
        full = self.price({})
        limit = asked.value * (full["weights"] if what == "weights" else 1)
        kept: dict[str, Any] = {}
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

    def _within(self, drop: float, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As many steps, in their order, as lose no more than `drop` together."""
        kept: dict[str, Any] = {}
        for record in steps:
            further = {**kept, record["layer"]: record["kept"]}
            if self._lost(further) > drop:
                break
            kept = further
        return kept

    def _lost(self, kept: Mapping[str, Any]) -> float:
        """The sum of the losses seen at these entries of a plan."""
        seen = {r["layer"]: r["loss"] for r in self.records if kept.get(r["layer"]) == r["kept"]}
        return float(sum(seen.values()))

    def _by_layer(self) -> dict[str, list[Mapping[str, Any]]]:
        found: dict[str, list[Mapping[str, Any]]] = {}
        for record in self.records:
            found.setdefault(record["layer"], []).append(record)
        return found

    def chart(self) -> Any:
        """A curve per layer: the metric against the layer's density; needs the extra `report`."""
        from prunus.report.sensitivity import scan_chart

        return scan_chart(self)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write one self-contained HTML page; needs the extra `report`."""
        from prunus.report.sensitivity import write_scan

        return write_scan(self, path)

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


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _hull(
    records: Sequence[Mapping[str, Any]], full: float, what: str
) -> list[tuple[float, Mapping[str, Any]]]:
    """Steps down one layer's lower convex hull of loss against what is saved, with their slopes."""
    points = sorted(((full - r[what], r["loss"], r) for r in records), key=lambda p: p[:2])
    hull: list[tuple[float, float, Any]] = [(0.0, 0.0, None)]
    for saved, loss, record in points:
        if saved <= hull[-1][0]:
            continue
        while len(hull) > 1 and _slope(hull[-1], saved, loss) <= _slope(hull[-2], *hull[-1][:2]):
            hull.pop()
        hull.append((saved, loss, record))
    return [(_slope(one, *other[:2]), other[2]) for one, other in pairwise(hull)]


def _slope(start: tuple[float, float, Any], saved: float, loss: float) -> float:
    return (loss - start[1]) / (saved - start[0])


@plainly
def sensitivity(
    model: nn.Module,
    recipe: str | Recipe,
    densities: Sequence[float],
    *,
    data: Any = None,
    evaluate: Callable[[nn.Module], Any],
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> SensitivityScan:
    """Prune every layer (or group of channels) alone, at each density, and evaluate.

    Calls `evaluate` once, and once for each layer and density.

    Args:
        model: the network; untouched.
        recipe: a name or a recipe, one-shot.
        densities: of the one layer that is pruned, in (0, 1].
        data: batches or a `Calibration`, where the recipe needs them.
        evaluate: a function model -> float or dict of floats.
        layers, exclude, loss: as for `prune`.
        metric: the entry of `evaluate`'s dict; the first where None.
        higher_is_better: of the metric; None takes it from what pruning does to it on average.
        seed: of random draws.
        progress: show a bar; None shows one on a terminal after two seconds.

    Returns:
        a `SensitivityScan`: table, picture, and a plan for a budget.

    Raises:
        ValueError: no densities, one outside (0, 1], twice the same, or a recipe that trains.
        TypeError: `evaluate` gives no numbers.

    Example:
        >>> scan = prunus.sensitivity(net, "wanda", [0.5, 0.2], data=x, evaluate=accuracy)
        >>> pruned = prunus.prune(net, "wanda", scan.plan(0.4), data=x)  # doctest: +SKIP
    """
    name, method = resolve(recipe)
    if isinstance(densities, str | int | float) or not list(densities):
        raise ValueError(f"`densities` must be a list of densities, got {densities!r}.")
    asked = [checked_density(d, f"densities[{i}]") for i, d in enumerate(densities)]
    if len({*asked}) < len(asked):
        raise ValueError(f"`densities` must differ, got {asked}. Give each once.")
    if method.schedule.trains:
        raise ValueError(f"Recipe {name!r} trains between its steps. Scan one that does not.")
    judge = theirs(evaluate)
    dense = as_metrics(judge(model))
    shown = metric if metric is not None else next(iter(dense))
    if shown not in dense:
        raise ValueError(f"`evaluate` gives {sorted(dense)}, not {shown!r}. Name one of them.")
    source: Any = data
    shared: Any = None
    if data is not None:
        source = data if isinstance(data, Calibration) else Batches(data)
        if method.needs_data:
            shared = shared_calibration(model, {name: method}, source, loss, None, progress)

    def thin(target: Any) -> Any:
        given = source if shared is None else data_for(method, target, shared, source)
        return prune(
            model, method, target, data=given, layers=layers, exclude=exclude, loss=loss, seed=seed,
            progress=False,
        )  # fmt: skip

    first = thin(min(asked))
    full = first.cost_before
    chosen = list(first.plan.kept)
    costs: dict[str, dict[str, float]] = {}

    def price(kept: Mapping[str, Any]) -> Mapping[str, float]:
        key = repr(sorted(kept.items()))
        if key not in costs:
            cost = thin(Plan(kept=dict(kept))).cost_after if kept else full
            costs[key] = _costs(cost)
        return costs[key]

    records: list[dict[str, Any]] = []
    with progress_bar(f"scanning by {name}", len(chosen) * len(asked), progress=progress) as step:
        for layer in chosen:
            for density in asked:
                pruned = thin({layer: density})
                value = as_metrics(judge(pruned.model))[shown]
                kept = pruned.plan.kept[layer]
                records.append(
                    {
                        "layer": layer,
                        "density": density,
                        "kept": kept,
                        "value": value,
                        **_costs(pruned.cost_after),
                    }
                )
                step(1)
    higher = higher_is_better
    if higher is None:
        higher = sum(r["value"] - dense[shown] for r in records) <= 0
    sign = 1 if higher else -1
    rows = [{**r, "loss": sign * (dense[shown] - r["value"])} for r in records]
    return SensitivityScan(
        records=rows, dense=dense, metric=shown, higher=higher, recipe=method, price=price
    )


def _costs(cost: Cost) -> dict[str, float]:
    """Whole numbers of a network; `weights` are the selected ones that are kept, as a share."""
    found = {key: getattr(cost, key) for key in ("parameters", "macs", "bytes")}
    return {
        **{key: float(value) for key, value in found.items() if value is not None},
        "weights": float(cost.density),
    }
