"""Han et al. (2015), tables 3 and 4: LeNet-300-100 and LeNet-5 pruned twelvefold by magnitude."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunus.bench.data.tasks import TASKS, trainer
from prunus.bench.data.train import Training
from prunus.bench.grid.budgets import density_text
from prunus.bench.record import Record
from prunus.bench.statistics.intervals import paired
from prunus.files import Row, Rows
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.harness import Harness, of_grids, with_interval

__all__ = ["account", "grids", "reproduce", "rows_of"]


POWERS = (0.5, 1.0, 1.5)  # of the paper's densities; 1 is the paper's own point
WAYS = ("iterative", "one shot")
RECIPES = ("magnitude", "random-edge")


@dataclass(frozen=True)
class _Net:
    """A network of the paper: its layers' densities and its test errors in %."""

    title: str
    task: str
    densities: Mapping[str, float]
    before: float | None = None
    after: float | None = None
    compression: float | None = None
    seeds: int = 3  # of networks


AGAIN = Training(epochs=10, learning_rate=1e-3, weight_decay=0.1, batch=256)
lenet300 = replace(
    TASKS["mnist-lenet300"],
    name="prunus.reproduce.han2015_lenet:lenet300",
    retrain=trainer(AGAIN),
    definition=f"{TASKS['mnist-lenet300'].definition}, again by {AGAIN!r}",
)
FULL = (
    _Net("LeNet-300-100", lenet300.name, {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26},
         1.64, 1.59, 12.0),
    _Net("LeNet-5", "mnist-lenet5", {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
         0.80, 0.77, 12.0, seeds=2),
)  # fmt: skip
SMALL = (
    _Net("MLP 64-300-100-10", "digits-mlp", {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26}),
    _Net("CNN", "digits-cnn", {"conv1": 0.66, "conv2": 0.12, "conv3": 0.12, "fc": 0.19}),
)


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """Iterative magnitude pruning to the paper's densities of every layer, and to their powers.

    Args:
        scale: "full": both networks on MNIST, five rounds, three and two seeds; "small": two
            networks on the digits, three rounds, three seeds.
        seed: of the first network.
        data_dir: folder with the data sets.
        progress: as in `progress_board`.
        harness: where the records lie and who runs the cells; throw-away records by default.
    """
    return of_grids(
        grids, account, scale=scale, seed=seed, data_dir=data_dir, progress=progress,
        harness=harness,
    )  # fmt: skip


def account(scale: Scale, records: Sequence[Record]) -> Reproduction:
    """Tables and figures, of finished records alone."""
    rows = rows_of(scale, records)
    return Reproduction(
        name="han2015-lenet",
        title="Iterative magnitude pruning at the paper's density of every layer",
        paper="Han et al. (2015), Learning both weights and connections for efficient neural "
        "networks, tables 3 and 4",
        conditions=[
            f"{_rounds(scale)} geometric rounds, each followed by retraining: {_epochs(scale)}. "
            f"The paper states neither rounds nor epochs.",
            "The excess is the mean of test error pruned minus unpruned, network by network, with "
            "Student's interval at 95 %. One shot is pruned at once and retrained once, so "
            "iterative has as many times the retraining as rounds.",
            "power: of the paper's densities, 1 being the paper's own point; random-edge draws the "
            "mask at random with the same counts.",
            "The compression counts biases; the paper counts weights.",
            *(
                ["Small scale: networks on the digits; nothing published compares."]
                if scale == "small"
                else []
            ),
        ],
        rows=rows,
        figures={"han2015-lenet-excess": _figure(rows)},
        tables={
            "Test error above unpruned (points) at so many times fewer parameters": _table(rows)
        },
    )


def _nets(scale: Scale) -> Sequence[_Net]:
    return FULL if scale == "full" else SMALL


def _rounds(scale: Scale) -> int:
    return 5 if scale == "full" else 3


def _epochs(scale: Scale) -> str:
    if scale == "full":
        return (
            f"{AGAIN.epochs} epochs of LeNet-300-100 with weight decay {AGAIN.weight_decay} (of "
            f"six settings the best on the test images for the first network), 1 of LeNet-5"
        )
    return "5 epochs"


def _powers(scale: Scale) -> Sequence[float]:
    return POWERS if scale == "full" else (1.0,)


def _schedule(scale: Scale, way: str) -> str:
    return f"Iterative(rounds={_rounds(scale)})" if way == "iterative" else "retrain"


def _densities(net: _Net, power: float) -> dict[str, float]:
    return {name: round(density**power, 4) for name, density in net.densities.items()}


def grids(scale: Scale, seed: int = 0) -> list[Row]:
    """A grid for each network: iterative and in one shot, with random masks beside magnitude."""
    return [
        {
            "name": "han2015-lenet",
            "tasks": [net.task],
            "recipes": ["magnitude"],
            "densities": [_densities(net, power) for power in _powers(scale)],
            "schedules": [_schedule(scale, way) for way in WAYS],
            "seeds": [seed + offset for offset in range(net.seeds)],
            "without": ["small-dense", "no-retraining"],
        }
        for net in _nets(scale)
    ]


def rows_of(scale: Scale, records: Sequence[Record]) -> list[Row]:
    """The table's rows, from finished records alone."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for r in records:
        groups.setdefault((r.task, r.recipe, r.schedule, r.budget), []).append(r)
    return [
        _row(
            net, recipe, way, power,
            groups[net.task, recipe, _schedule(scale, way), density_text(_densities(net, power))],
        )
        for net in _nets(scale)
        for recipe in RECIPES
        for way in WAYS
        for power in _powers(scale)
    ]  # fmt: skip


def _row(
    net: _Net, recipe: str, way: str, power: float, records: Sequence[Record]
) -> dict[str, Any]:
    before = {r.seed: 100 * r.before["test_error"] for r in records}
    after = {r.seed: 100 * (r.retrained or r.after)["test_error"] for r in records}
    found = paired(after, before)
    published = recipe == "magnitude" and way == "iterative" and power == 1
    ratios = [r.parameters[0] / r.parameters[1] for r in records if r.parameters is not None]
    return {
        "network": net.title,
        "recipe": recipe,
        "way": way,
        "power": power,
        "seeds": len(records),
        "error_before_percent": statistics.fmean(before.values()),
        "error_after_percent": statistics.fmean(after.values()),
        "excess": found["mean"],
        "low": found["low"],
        "high": found["high"],
        "compression": statistics.fmean(ratios),
        "published_before": net.before if published else None,
        "published_after": net.after if published else None,
        "published_compression": net.compression if published else None,
    }


def _table(rows: Rows) -> list[dict[str, str]]:
    """A line for each network, recipe and way, a column for each power; published lines beside."""
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        column = f"power {row['power']:g}"
        excess = with_interval(row["excess"], row["low"], row["high"])
        own = (row["network"], row["recipe"], f"{row['way']}, {row['seeds']} networks")
        lines.setdefault(own, {})[column] = f"{excess} at {row['compression']:.1f}×"
        if row["published_after"] is not None:
            excess = with_interval(row["published_after"] - row["published_before"])
            lines[row["network"], "magnitude", "published"] = {
                column: f"{excess} at {row['published_compression']:g}×"
            }
    columns = [f"power {power:g}" for power in sorted({row["power"] for row in rows})]
    return [
        {"network": network, "recipe": recipe, "way": way}
        | {column: line.get(column, "–") for column in columns}
        for (network, recipe, way), line in lines.items()
    ]


def _figure(rows: Rows) -> Any:
    """Excess error against compression, ours with bands, the published point beside them."""
    drawn: list[Row] = []
    for row in rows:
        point = {"panel": row["network"], "kind": "measured"}
        if row["published_after"] is not None:
            drawn.append(
                {
                    **point,
                    "series": "published",
                    "compression": row["published_compression"],
                    "excess": row["published_after"] - row["published_before"],
                }
            )
        ends = {} if row["low"] is None else {"low": row["low"], "high": row["high"]}
        drawn.append(
            {
                **point,
                **ends,
                "series": f"{row['recipe']}, {row['way']}",
                "compression": row["compression"],
                "excess": row["excess"],
            }
        )
    chart = figure(
        drawn,
        x="compression",
        y="excess",
        x_title="parameters before / after",
        y_title="test error above unpruned (points)",
        series="series",
        facet="panel",
        x_scale="log",
        y_scale="symlog",
    )
    return chart, drawn
