"""Han et al. (2015), tables 3 and 4: LeNet-300-100 and LeNet-5 pruned twelvefold by magnitude."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus.bench.cache import trained
from prunus.bench.statistics import t_interval
from prunus.bench.tasks import TASKS
from prunus.engine import prune
from prunus.presets import recipes
from prunus.progress import progress_bar
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.rng import generator_for
from prunus.schedules import Iterative, Step

__all__ = ["reproduce"]


@dataclass(frozen=True)
class _Net:
    """A network of the paper: its layers' densities and its test errors in %."""

    title: str
    task: str
    densities: Mapping[str, float]
    before: float | None = None
    after: float | None = None
    compression: float | None = None


FULL = (
    _Net("LeNet-300-100", "mnist-lenet300", {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26},
         1.64, 1.59, 12.0),
    _Net("LeNet-5", "mnist-lenet5", {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
         0.80, 0.77, 12.0),
)  # fmt: skip
SMALL = (
    _Net("MLP 64-300-100-10", "digits-mlp", {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26}),
    _Net("CNN", "digits-cnn", {"conv1": 0.66, "conv2": 0.12, "conv3": 0.12, "fc": 0.19}),
)


def reproduce(
    *, scale: Scale, seed: int, data_dir: Path | None, progress: bool | None
) -> Reproduction:
    """Iterative magnitude pruning to the paper's densities of every layer.

    Args:
        scale: "full": both networks on MNIST, five rounds, five seeds; "small": two networks on
            the digits, three rounds, two seeds.
        seed: of the first network.
        data_dir: folder with the data sets.
        progress: as in `progress_bar`.
    """
    full = scale == "full"
    nets, rounds, seeds = (FULL, 5, range(5)) if full else (SMALL, 3, range(2))
    recipe = replace(recipes["magnitude"], schedule=Iterative(rounds))
    rows: list[dict[str, Any]] = []
    with progress_bar("han2015-lenet", len(nets) * len(seeds), progress=progress) as advance:
        for net in nets:
            chosen = TASKS[net.task]
            data = chosen.data(data_dir=data_dir)
            dense, left, ratio = [], [], []
            for offset in seeds:
                draw = seed + offset
                found = trained(chosen, data, seed=draw, progress=progress)

                def train(model: nn.Module, step: Step, draw: int = draw) -> None:
                    generator = generator_for(draw, "retraining", chosen.name, step.index)  # noqa: B023
                    chosen.retrain(model, data, generator=generator, hold=None, progress=progress)  # noqa: B023

                pruned = prune(
                    found.model, recipe, dict(net.densities), data=data.batches(limit=1000),
                    train=train, seed=draw, progress=False,
                )  # fmt: skip
                dense.append(100 * found.metrics["test_error"])
                left.append(100 * chosen.evaluate(pruned.model, data)["test_error"])
                ratio.append(pruned.cost_before.parameters / pruned.cost_after.parameters)
                advance(1)
            ends = t_interval(left)
            rows.append(
                {
                    "network": net.title,
                    "seeds": len(left),
                    "error_before_percent": statistics.fmean(dense),
                    "error_after_percent": statistics.fmean(left),
                    "low": None if ends is None else ends[0],
                    "high": None if ends is None else ends[1],
                    "compression": statistics.fmean(ratio),
                    "published_before": net.before,
                    "published_after": net.after,
                    "published_compression": net.compression,
                }
            )
    drawn = [
        {"network": name, "compression": ratio, "excess": excess, "kind": "measured"}
        for row in rows
        for name, ratio, excess in (
            (
                f"{row['network']}, ours",
                row["compression"],
                row["error_after_percent"] - row["error_before_percent"],
            ),
            *(
                [(f"{row['network']}, published", row["published_compression"],
                  row["published_after"] - row["published_before"])]
                if row["published_after"] is not None
                else []
            ),
        )
    ]  # fmt: skip
    chart = figure(
        drawn,
        x="compression",
        y="excess",
        x_title="parameters before / after",
        y_title="test error above unpruned (points)",
        series="network",
    )
    return Reproduction(
        name="han2015-lenet",
        title="Iterative magnitude pruning at the paper's density of every layer",
        paper="Han et al. (2015), Learning both weights and connections for efficient neural "
        "networks, tables 3 and 4",
        conditions=[
            f"{rounds} geometric rounds, each followed by the task's short retraining; the paper "
            f"retrains for longer and states neither rounds nor epochs.",
            "The compression counts biases; the paper counts weights.",
            *([] if full else ["Small scale: networks on the digits; nothing published compares."]),
        ],
        rows=rows,
        figures={"han2015-lenet-excess": (chart, drawn)},
    )
