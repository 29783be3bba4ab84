"""`sensitivity`: every layer pruned alone, at every density, and evaluated."""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from prunus.ambient import plainly
from prunus.budget import Counts, Density, Plan, checked_density
from prunus.calibration import Calibration
from prunus.calibration.batches import Batches
from prunus.cost import Cost
from prunus.engine.calibrated import data_for, shared_calibration
from prunus.engine.judge import example_of, judge_of
from prunus.engine.prune import prune
from prunus.engine.runs import as_metrics
from prunus.engine.scan import SensitivityScan
from prunus.engine.watched import watched
from prunus.files import Row
from prunus.hints import Data, Evaluate, Loss
from prunus.means import as_loss
from prunus.presets import resolve
from prunus.progress import progress_bar
from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.rows import RowSet
from prunus.threads import sparing

__all__ = ["SensitivityScan", "sensitivity"]


@plainly
@sparing
def sensitivity(
    model: nn.Module,
    recipe: str | Recipe,
    densities: Sequence[float],
    *,
    data: Data | None = None,
    evaluate: Evaluate,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    loss: Loss | None = None,
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
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> def entries(model):  # any function of a network that gives a number, or several
        ...     return sum(float((p != 0).sum()) for p in model.parameters())
        >>> scan = sensitivity(net, "magnitude", [0.5, 0.25], evaluate=entries)
        >>> prune(net, "magnitude", scan.plan(0.4)).cost_after.density <= 0.4
        True
    """
    name, method = resolve(recipe)
    if isinstance(densities, str | int | float) or not (densities := list(densities)):
        raise ValueError(f"`densities` must be a list of densities, got {densities!r}.")
    asked = [checked_density(d, f"densities[{i}]") for i, d in enumerate(densities)]
    if len({*asked}) < len(asked):
        raise ValueError(f"`densities` must differ, got {asked}. Give each once.")
    if method.schedule.trains:
        raise ValueError(f"Recipe {name!r} trains between its steps. Scan one that does not.")
    source = data if data is None or isinstance(data, Calibration) else Batches(data)
    judge = judge_of(evaluate, model, example_of(source))
    dense = as_metrics(judge(model))
    shown = metric if metric is not None else next(iter(dense))
    if shown not in dense:
        raise ValueError(f"`evaluate` gives {sorted(dense)}, not {shown!r}. Name one of them.")
    shared: Calibration | None = None
    if source is not None and method.needs_data:
        shared = shared_calibration(model, {name: method}, source, loss, None, progress, layers)

    def thin(target: Density) -> Pruned:
        given = source
        if shared is not None and source is not None:
            given = data_for(method, target, shared, source)
        return prune(
            model, method, target, data=given, layers=layers, exclude=exclude, loss=loss, seed=seed,
            progress=False,
        )  # fmt: skip

    first = thin(min(asked))
    read: list[RowSet] = [] if first.data_rows is None else [first.data_rows]
    full = first.cost_before
    chosen = list(first.plan.kept)
    costs: dict[str, dict[str, float]] = {}

    def price(kept: Mapping[str, Counts]) -> Mapping[str, float]:
        key = repr(sorted(kept.items()))
        if key not in costs:
            cost = thin(Plan(kept=dict(kept))).cost_after if kept else full
            costs[key] = _costs(cost)
        return costs[key]

    records: list[Row] = []
    with progress_bar(f"scanning by {name}", len(chosen) * len(asked), progress=progress) as step:
        for layer in chosen:
            for density in asked:
                pruned = thin({layer: density})
                said, rows = watched(pruned.model, judge)
                value = as_metrics(said)[shown]
                read.append(rows)
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
        moves = [r["value"] - dense[shown] for r in records]
        higher = sum(move for move in moves if not math.isnan(move)) <= 0
    sign = 1 if higher else -1
    for r in records:
        r["loss"] = as_loss(sign * (dense[shown] - r["value"]), higher=False)
    seen = RowSet.of(own.hashes for own in read)
    return SensitivityScan(
        records=records,
        dense=dense,
        metric=shown,
        higher=higher,
        recipe=method,
        price=price,
        data_fingerprint=None if shared is None else shared.fingerprint,
        samples=None if shared is None else shared.samples,
        rows=seen if len(seen) else None,
    )


def _costs(cost: Cost) -> dict[str, float]:
    """Whole numbers of a network; `weights` are the selected ones that are kept, as a share."""
    found = {key: getattr(cost, key) for key in ("parameters", "macs", "bytes")}
    return {
        **{key: float(value) for key, value in found.items() if value is not None},
        "weights": float(cost.density),
    }
