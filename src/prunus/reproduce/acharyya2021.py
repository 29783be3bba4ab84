"""The six methods of Acharyya et al. (2021) on the first layer of a trained network."""

import copy
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus.bench.cache import trained
from prunus.bench.statistics import t_interval
from prunus.bench.tasks import Task
from prunus.budget import Plan
from prunus.calibration import calibrate
from prunus.compensation import LeastSquares
from prunus.engine import prune
from prunus.granularity import EdgePerRow, Node
from prunus.presets import recipes
from prunus.progress import progress_bar
from prunus.recipe import Recipe
from prunus.report.figure import figure
from prunus.reproduce import Reproduction
from prunus.result import Pruned
from prunus.scores import Constant
from prunus.selection import KDPP

__all__ = ["Setting", "edge_count", "node_count", "run"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the two data sets of the paper differ in.

    Attributes:
        name: of the reproduction.
        title: one line.
        paper: what is reproduced.
        task: the trained network; its first layer is called fc1.
        densities: shares of the first layer's weights that are kept.
        seeds: draws of the random methods, on one trained network each.
        samples: training samples that calibrate.
        bandwidth: β of both DPP kernels, per mean squared distance.
        published: {method: {kept %: test error %}}, with reweighting.
        published_dense: the paper's unpruned test error in %; None where nothing is published.
        conditions: what differs from the paper.
    """

    name: str
    title: str
    paper: str
    task: Task
    densities: Sequence[float]
    seeds: Sequence[int]
    samples: int
    bandwidth: float | str
    published: Mapping[str, Mapping[int, float]]
    published_dense: float | None
    conditions: Sequence[str]


def edge_count(density: float, inputs: int) -> int:
    """Weights kept per output: ⌈density · inputs⌉, as in the paper's code."""
    return math.ceil(round(density * inputs, 9))


def node_count(density: float, inputs: int, units: int, outputs: int) -> int:
    """Units with as many parameters as the edges at that density.

    An edge-pruned pair of layers keeps units · (density · inputs + outputs) weights, and a unit has
    inputs + outputs of them.

    Example:
        >>> [node_count(p / 10, 784, 500, 500) for p in (1, 2, 5, 9)]
        [225, 255, 347, 469]
    """
    return math.floor(units * (density * inputs + outputs) / (inputs + outputs) + 1e-9)


def methods(bandwidth: float | str) -> dict[str, Recipe]:
    """The paper's six methods, edges first, without reweighting."""
    kernel = KDPP(bandwidth=bandwidth)
    return {
        "DPP edge": Recipe(granularity=EdgePerRow(), score=Constant(), selection=kernel),
        "importance edge": recipes["magnitude-row"],
        "random edge": recipes["random-edge"],
        "DIVNET (DPP node)": Recipe(granularity=Node(), score=Constant(), selection=kernel),
        "importance node": recipes["importance-node"],
        "random node": recipes["random-node"],
    }


def run(
    setting: Setting, *, seed: int, data_dir: Path | None, progress: bool | None
) -> Reproduction:
    """Prune the first layer by every method at every density, with and without reweighting."""
    chosen = setting.task
    data = chosen.data(data_dir=data_dir)
    errors: dict[tuple[str, str, float], list[float]] = {}
    dense: list[float] = []
    total = len(setting.seeds) * len(setting.densities) * 12
    with progress_bar(setting.name, total, progress=progress) as advance:
        for offset in setting.seeds:
            draw = seed + offset
            found = trained(chosen, data, seed=draw, progress=progress)
            model = found.model
            dense.append(100 * found.metrics["test_error"])
            statistics_ = calibrate(
                model, data.batches(limit=setting.samples), ("gram", "mean"), progress=progress
            )
            first, second = model.get_submodule("fc1"), model.get_submodule("fc2")
            assert isinstance(first, nn.Linear)
            assert isinstance(second, nn.Linear)
            group = next(iter(_node_plan(model, statistics_)))
            for density in setting.densities:
                edges = edge_count(density, first.in_features)
                nodes = node_count(
                    density, first.in_features, first.out_features, second.out_features
                )
                plans = {
                    False: Plan(kept={"fc1": (edges,) * first.out_features}),
                    True: Plan(kept={group: nodes}),
                }
                memo: dict[Any, Any] = {}
                for name, recipe in methods(setting.bandwidth).items():
                    whole = isinstance(recipe.granularity, Node)
                    for label, method in (
                        ("no", recipe),
                        ("yes", replace(recipe, compensation=LeastSquares())),
                    ):
                        pruned = prune(
                            model, method, plans[whole], data=statistics_, layers="fc1",
                            seed=draw, progress=False, memo=memo,
                        )  # fmt: skip
                        error = 100 * chosen.evaluate(pruned.model, data)["test_error"]
                        errors.setdefault((name, label, density), []).append(error)
                        if whole and label == "no":
                            kept = emitting(model, pruned)
                            error = 100 * chosen.evaluate(kept, data)["test_error"]
                            key = (name, "no, removed units emit f(bias)", density)
                            errors.setdefault(key, []).append(error)
                        advance(1)
    rows = [_row(setting, key, values, statistics.fmean(dense)) for key, values in errors.items()]
    return Reproduction(
        name=setting.name,
        title=setting.title,
        paper=setting.paper,
        conditions=[
            f"Ours: {chosen.title}, {len(setting.seeds)} trained networks with a draw each, "
            f"unpruned {statistics.fmean(dense):.2f} %; intervals are Student's at 95 %.",
            "Only the first hidden layer is pruned. Edges: ⌈p · inputs⌉ per unit; nodes: as many "
            "as have the same number of parameters.",
            "Published numbers are with reweighting. The paper states no target for importance "
            "edge, importance node and random node that its code bears out.",
            "Removed nodes are really removed; the row that says so keeps the dense second layer "
            "and lets a removed unit go on emitting f(bias), as the paper's code does.",
            *setting.conditions,
        ],
        rows=rows,
        figures={f"{setting.name}-excess": _figure(rows)},
    )


def emitting(model: nn.Module, pruned: Pruned) -> nn.Module:
    """The dense model with the removed units' incoming weights at zero and all else in place."""
    kept = copy.deepcopy(model)
    first = kept.get_submodule("fc1")
    assert isinstance(first, nn.Linear)
    mask = pruned.masks["fc1.weight"]
    first.weight.data.mul_(mask)
    return kept


def _node_plan(model: nn.Module, calibration: Any) -> Mapping[str, Any]:
    """A plan for nodes of the first layer, for the name of its group."""
    return prune(
        model, "random-node", 0.5, data=calibration, layers="fc1", progress=False
    ).plan.kept


def _row(
    setting: Setting, key: tuple[str, str, float], values: Sequence[float], dense: float
) -> dict[str, Any]:
    name, label, density = key
    percent = round(100 * density)
    ends = t_interval(values)
    mean = statistics.fmean(values)
    published = setting.published.get(name, {}).get(percent) if label == "yes" else None
    base = setting.published_dense
    return {
        "method": name,
        "reweighted": label,
        "kept_percent": percent,
        "test_error_percent": mean,
        "low": None if ends is None else ends[0],
        "high": None if ends is None else ends[1],
        "excess": mean - dense,
        "published": published,
        "published_excess": None if published is None or base is None else published - base,
    }


def _figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Excess test error with reweighting, ours as points with a band, published as lines."""
    drawn: list[dict[str, Any]] = []
    for row in rows:
        if row["reweighted"] != "yes":
            continue
        shift = row["excess"] - row["test_error_percent"]
        record = {
            "method": row["method"],
            "kept_percent": row["kept_percent"],
            "excess": row["excess"],
            "kind": "measured",
            "panel": "nodes" if "node" in row["method"] else "edges",
        }
        if row["low"] is not None:
            record |= {"low": row["low"] + shift, "high": row["high"] + shift}
        drawn.append(record)
        if row["published_excess"] is not None:
            bare = {k: v for k, v in record.items() if k not in ("low", "high")}
            drawn.append({**bare, "excess": row["published_excess"], "kind": "theory"})
    chart = figure(
        drawn,
        x="kept_percent",
        y="excess",
        x_title="parameters kept (%)",
        y_title="test error above unpruned (points)",
        series="method",
        facet="panel",
        title="points: measured; lines: published",
    )
    return chart, drawn
