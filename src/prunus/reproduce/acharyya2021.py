"""The six methods of Acharyya et al. (2021) on the first layer of a trained network."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus.bench.data.tasks import fresh_model, task
from prunus.bench.grid.budgets import budget_text
from prunus.bench.record import Record
from prunus.bench.statistics.intervals import holm, paired
from prunus.compensation import LeastSquares
from prunus.files import Row, Rows
from prunus.granularity import EdgePerRow, Node
from prunus.parts import NODES
from prunus.presets import recipes
from prunus.recipe import Recipe
from prunus.report.figure import figure
from prunus.reproduce import Reproduction
from prunus.reproduce.harness import Harness, carry_out, with_interval
from prunus.scores import Constant
from prunus.selection import KDPP, DPPPoisson

__all__ = ["Setting", "account", "edge_count", "grids", "methods", "node_count", "rows_of", "run"]

LAYER = "fc1"
DPP_EDGE, DIVNET = "DPP edge", "DIVNET (DPP node)"
STAGES = {  # what the rows call a score -> the prefix of its name in the records
    "yes": "",
    "no": "bare_",
    "no, removed units emit f(bias)": "emitting_",
}
CONTRASTS = (
    (DPP_EDGE, "random edge"),
    (DPP_EDGE, "importance edge"),
    (DIVNET, "random node"),
    (DIVNET, "importance node"),
)
TITLES = {
    "yes": "With reweighting",
    "no": "Without reweighting",
    "no, removed units emit f(bias)": "Without reweighting, removed units go on emitting f(bias)",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the two data sets of the paper differ in.

    Attributes:
        name: of the reproduction.
        title: one line.
        paper: what is reproduced.
        task: of the benchmark; its network's first layers are called fc1 and fc2.
        densities: shares of the first layer's weights that are kept.
        seeds: of the networks; each gets one draw of every random method.
        samples: training samples that calibrate.
        bandwidth: β of both DPP kernels, per mean squared distance.
        published: {method: {kept %: test error %}}, with reweighting.
        published_dense: the paper's unpruned test error in %; None where nothing is published.
        conditions: what differs from the paper.
        poisson: draw DPP edges by the Poisson form of the k-DPP, not exactly.
        dpp_edge_densities: of the DPP over edges alone; None for `densities`.
        dpp_edge_seeds: of the DPP over edges alone; None for `seeds`.
    """

    name: str
    title: str
    paper: str
    task: str
    densities: Sequence[float]
    seeds: Sequence[int]
    samples: int
    bandwidth: float | str
    published: Mapping[str, Mapping[int, float]]
    published_dense: float | None
    conditions: Sequence[str]
    poisson: bool = False
    dpp_edge_densities: Sequence[float] | None = None
    dpp_edge_seeds: Sequence[int] | None = None


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


def methods(bandwidth: float | str, *, poisson: bool = False) -> dict[str, Recipe]:
    """The paper's six methods, edges first, with reweighting."""
    kernel = KDPP(bandwidth=bandwidth)
    edges = DPPPoisson(kernel) if poisson else kernel
    bare = {
        DPP_EDGE: Recipe(granularity=EdgePerRow(), score=Constant(), selection=edges),
        "importance edge": recipes["magnitude-row"],
        "random edge": recipes["random-edge"],
        DIVNET: Recipe(granularity=Node(), score=Constant(), selection=kernel),
        "importance node": recipes["importance-node"],
        "random node": recipes["random-node"],
    }
    return {name: replace(recipe, compensation=LeastSquares()) for name, recipe in bare.items()}


def grids(setting: Setting, seed: int = 0) -> list[Row]:
    """The grids of a reproduction: edges, DPP edges where they run by themselves, nodes.

    Every cell scores its masks with reweighting, without it (`bare_`), and for nodes with removed
    units that go on emitting (`emitting_`).
    """
    edges, nodes = _counts(setting)
    own = methods(setting.bandwidth, poisson=setting.poisson)
    common = {
        "tasks": [setting.task],
        "layers": [LAYER],
        "calibration": setting.samples,
        "rescore": ["bare", "emitting"],
        "without": ["random", "random-layers", "small-dense", "no-compensation", "no-retraining"],
    }

    def grid(
        names: Iterable[str], kept: Mapping[float, int], densities: Sequence[float], draws: Any
    ) -> dict[str, Any]:
        return {
            **common,
            "name": setting.name,
            "recipes": [{"name": name, "recipe": repr(own[name])} for name in names],
            "budgets": [{"kept": {LAYER: kept[density]}} for density in densities],
            "seeds": [seed + offset for offset in draws],
        }

    node = [name for name, recipe in own.items() if recipe.granularity.units == NODES]
    edge = [name for name in own if name not in node and name != DPP_EDGE]
    dpp = setting.dpp_edge_densities or setting.densities, setting.dpp_edge_seeds or setting.seeds
    return [
        grid(edge, edges, setting.densities, setting.seeds),
        grid([DPP_EDGE], edges, *dpp),
        grid(node, nodes, setting.densities, setting.seeds),
    ]


def _counts(setting: Setting) -> tuple[dict[float, int], dict[float, int]]:
    """{density: weights kept} and {density: units kept} of the first layer."""
    model = fresh_model(task(setting.task), 0)
    first, second = model.get_submodule(LAYER), model.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    inputs, units = first.in_features, first.out_features
    return (
        {p: units * edge_count(p, inputs) for p in setting.densities},
        {p: node_count(p, inputs, units, second.out_features) for p in setting.densities},
    )


def run(
    setting: Setting,
    *,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None,
) -> Reproduction:
    """Prune the first layer by every method at every density, with and without reweighting."""
    records = carry_out(grids(setting, seed), harness, data_dir=data_dir, progress=progress)
    return account(setting, records)


def account(setting: Setting, records: Sequence[Record]) -> Reproduction:
    """Tables and figures, of finished records alone."""
    rows = rows_of(setting, records)
    dense = {r.seed: 100 * r.before["test_error"] for r in records}
    data = records[0].extra["data_set"]
    return Reproduction(
        name=setting.name,
        title=setting.title,
        paper=setting.paper,
        conditions=[
            f"Ours: {task(setting.task).title}, {len(dense)} trained networks with a draw each, "
            f"unpruned {statistics.fmean(dense.values()):.2f} %. The excess is the mean of test "
            f"error pruned minus unpruned, network by network, with Student's interval at 95 %.",
            f"{data['train']} training samples, {min(setting.samples, data['train'])} of them "
            f"calibrate; {data['test']} test samples.",
            "Only the first hidden layer is pruned. Edges: ⌈p · inputs⌉ per unit; nodes: as many "
            "as have the same number of parameters.",
            "Published numbers are with reweighting. The paper states no target for importance "
            "edge, importance node and random node that its code bears out.",
            "Removed nodes are really removed; where a table says so the dense second layer stays "
            "and a removed unit goes on emitting f(bias), as in the paper's code.",
            *_agreement(rows),
            *setting.conditions,
        ],
        rows=rows,
        figures={f"{setting.name}-excess": _figure(rows)},
        tables={**_tables(rows), **_contrasts(setting, records)},
    )


Errors = dict[tuple[str, str, float], dict[int, float]]  # by method, stage, density, then seed


def _errors(setting: Setting, records: Sequence[Record]) -> Errors:
    """Test errors in %, in the order of the tables."""
    edges, nodes = _counts(setting)
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.recipe, record.budget), []).append(record)
    found: Errors = {}
    for name, recipe in methods(setting.bandwidth, poisson=setting.poisson).items():
        counts = nodes if recipe.granularity.units == NODES else edges
        for stage, prefix in STAGES.items():
            for density in setting.densities:
                budget = budget_text({"kept": {LAYER: counts[density]}})
                for record in groups.get((name, budget), []):
                    value = record.after.get(f"{prefix}test_error")
                    if value is not None:
                        own = found.setdefault((name, stage, density), {})
                        own[record.seed] = 100 * value
    return found


def rows_of(setting: Setting, records: Sequence[Record]) -> list[Row]:
    """The table's rows, of finished records alone: method, then reweighting, then density."""
    dense = {r.seed: 100 * r.before["test_error"] for r in records}
    rows = []
    for (name, stage, density), errors in _errors(setting, records).items():
        percent = round(100 * density)
        found = paired(errors, dense)
        published = setting.published.get(name, {}).get(percent) if stage == "yes" else None
        base = setting.published_dense
        rows.append(
            {
                "method": name,
                "reweighted": stage,
                "kept_percent": percent,
                "networks": len(errors),
                "test_error_percent": statistics.fmean(errors.values()),
                "excess": found["mean"],
                "low": found["low"],
                "high": found["high"],
                "published": published,
                "published_excess": None if published is None or base is None else published - base,
            }
        )
    return rows


def _agreement(rows: Rows) -> list[str]:
    """How many published points lie inside our intervals, in words."""
    inside: dict[str, list[bool]] = {}
    for row in rows:
        if row["published_excess"] is not None and row["low"] is not None:
            fits = row["low"] <= row["published_excess"] <= row["high"]
            inside.setdefault(row["method"], []).append(fits)
    if not inside:
        return []
    each = ", ".join(f"{name} {sum(fits)} of {len(fits)}" for name, fits in inside.items())
    return [f"Published excesses inside our intervals: {each}."]


def _tables(rows: Rows) -> dict[str, list[dict[str, str]]]:
    """A table for each way to score: a line per method, a column per share kept."""
    found: dict[str, list[dict[str, str]]] = {}
    for stage in STAGES:
        lines: dict[str, dict[str, str]] = {}
        for row in rows:
            if row["reweighted"] == stage:
                name, column = row["method"], f"{row['kept_percent']} %"
                text = with_interval(row["excess"], row["low"], row["high"])
                lines.setdefault(name, {})[column] = text
                if row["published_excess"] is not None:
                    published = lines.setdefault(f"{name}, published", {})
                    published[column] = with_interval(row["published_excess"])
        columns = [f"{percent} %" for percent in sorted({row["kept_percent"] for row in rows})]
        found[f"{TITLES[stage]}: test error above unpruned (points) by parameters kept"] = [
            {"method": name} | {column: line.get(column, "–") for column in columns}
            for name, line in lines.items()
        ]
    return found


def _contrasts(setting: Setting, records: Sequence[Record]) -> dict[str, list[dict[str, str]]]:
    """Differences between methods, network by network, a table for each way to score."""
    errors = _errors(setting, records)
    found: dict[str, list[dict[str, str]]] = {}
    for stage in STAGES:
        pairs = {
            (f"{a} − {b}", density): paired(errors[a, stage, density], errors[b, stage, density])
            for a, b in CONTRASTS
            for density in setting.densities
            if {(a, stage, density), (b, stage, density)} <= errors.keys()
        }
        adjusted = dict(zip(pairs, holm([pair["p"] for pair in pairs.values()]), strict=True))
        lines: dict[str, dict[str, str]] = {}
        for (line, density), pair in pairs.items():
            mark = " *" if adjusted[line, density] <= 0.05 else ""
            text = with_interval(pair["mean"], pair["low"], pair["high"]) + mark
            lines.setdefault(line, {})[f"{round(100 * density)} %"] = text
        columns = [f"{round(100 * density)} %" for density in setting.densities]
        title = f"{TITLES[stage]}: difference of test errors (points); * p ≤ 0.05 after Holm"
        found[title] = [
            {"methods": name} | {column: line.get(column, "–") for column in columns}
            for name, line in lines.items()
        ]
    return found


def _figure(rows: Rows) -> Any:
    """Excess test error with reweighting, ours as points with a band, published as lines.

    From 20 % on: nothing is published below, where random edges leave every other point at zero.
    """
    drawn: list[Row] = []
    for row in rows:
        if row["reweighted"] != "yes" or row["kept_percent"] < 20:
            continue
        record = {
            "method": row["method"],
            "kept_percent": row["kept_percent"],
            "excess": row["excess"],
            "kind": "measured",
            "panel": "nodes" if "node" in row["method"] else "edges",
        }
        if row["published_excess"] is not None:
            drawn.append({**record, "excess": row["published_excess"], "kind": "theory"})
        if row["low"] is not None:
            record |= {"low": row["low"], "high": row["high"]}
        drawn.append(record)
    chart = figure(
        drawn,
        x="kept_percent",
        y="excess",
        x_title="parameters kept (%)",
        y_title="test error above unpruned (points)",
        series="method",
        facet="panel",
        title="points: measured, with 95 % bands; lines: published",
    )
    return chart, drawn
