"""The demonstration: small nets on the digits, pruned by every recipe, as one report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from prunus.bench.cache import trained
from prunus.bench.comparison import latency_rows, records_of, report_rows, versions
from prunus.bench.data import Dataset, load_data
from prunus.bench.models import mlp
from prunus.bench.record import Record, host_facts
from prunus.bench.tasks import task
from prunus.bench.train import Training, evaluate, fit
from prunus.check import whole
from prunus.engine import compare, prune
from prunus.files import write_text
from prunus.layer import layer_of
from prunus.presets import recipes
from prunus.report.comparison import comparison_page, network_sections
from prunus.report.network import draw_network
from prunus.report.page import Drawing, Section, Text
from prunus.report.tables import score_rows
from prunus.rng import generator_for

__all__ = ["DENSITIES", "Demo", "run_demo"]

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
NETS = ("digits-mlp", "digits-cnn")
METRIC = "test_error"


@dataclass(frozen=True, eq=False, kw_only=True)
class Demo:
    """What the demonstration found and where it lies.

    Attributes:
        records: one per run.
        page: the HTML report.
        lines: the records as JSON lines.
        dense: test error of the dense networks, by task, a share per seed.
    """

    records: Sequence[Record]
    page: Path
    lines: Path
    dense: dict[str, list[float]]

    def table(self, net: str) -> list[dict[str, Any]]:
        """Mean test error in percent, a row per recipe, a column per density."""
        rows = [r for r in report_rows(self.records, METRIC) if r["network"] == net]
        return score_rows([{**r, "percent": 100 * r["score"]} for r in rows], "percent")


def run_demo(
    folder: str | Path,
    *,
    nets: Sequence[str] = NETS,
    names: Sequence[str] | None = None,
    densities: Sequence[float] = DENSITIES,
    seeds: int = 3,
    cache: str | Path | None = None,
    progress: bool | None = None,
) -> Demo:
    """Train, prune by every recipe, compact, measure, and write the report.

    Each seed trains a network of its own and prunes it with draws of its own, so that the bands
    show both. Compact networks are timed for the first seed.

    Args:
        folder: for `report.html` and `records.jsonl`; made if missing.
        nets: tasks on the digits.
        names: recipes; all where None.
        densities: kept / total.
        seeds: how many networks of each kind.
        cache: folder of trained networks.
        progress: as in `progress_bar`.

    Raises:
        ImportError: the extra `demo` is not installed.
        OSError: the folder cannot be written.
    """
    whole("seeds", seeds, low=1)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    data = load_data("digits")
    chosen = list(recipes) if names is None else list(names)
    records: list[Record] = []
    dense: dict[str, list[float]] = {}
    for net in nets:
        for seed in range(seeds):
            start = trained(task(net), data, seed=seed, cache=cache, progress=progress)
            dense.setdefault(net, []).append(start.metrics[METRIC])
            comparison = compare(
                start.model,
                chosen,
                list(densities),
                data=data.batches(),
                evaluate=lambda model: evaluate(model, data),
                seeds=[seed],
                metric=METRIC,
                latency=seed == 0,
                progress=progress,
            )
            records += records_of(comparison, task=net, data=data.fingerprint, model_seed=seed)
    sections = [_pictures(data)]
    for net in nets:
        own = [r for r in records if r.task == net]
        sections += network_sections(
            report_rows(own, METRIC),
            latency_rows(own),
            metric=METRIC,
            prefix=f"{net}-",
            title=task(net).title,
        )
    host = host_facts()
    page = comparison_page(
        sections,
        chosen,
        title="prunus: pruning small networks on the digits",
        lead=(
            f"Two networks, {len(chosen)} recipes, {len(densities)} densities, {seeds} seeds: "
            f"{len(records)} prunings of networks that were trained on {len(data.x_train)} images "
            f"of 8×8 pixels and are tested on {len(data.x_test)}. Nothing was trained again after "
            f"pruning.\n\nAn error of 90 % is guessing. Test errors move in steps of "
            f"{100 / len(data.x_test):.2f} %."
        ),
        footer=(
            f"Versions: {', '.join(f'{k} {v}' for k, v in versions().items())}. "
            f"Host: {host['processor']}, {host['cores']} cores, {host['threads']} torch threads."
        ),
    )
    lines = "".join(json.dumps(r.to_row(), sort_keys=True, allow_nan=False) + "\n" for r in records)
    return Demo(
        records=records,
        page=write_text(out / "report.html", page),
        lines=write_text(out / "records.jsonl", lines),
        dense=dense,
    )


def _pictures(data: Dataset) -> Section:
    """A net small enough to draw, dense and pruned both ways to the same density."""
    coarse = replace(
        data,
        x_train=functional.avg_pool2d(data.x_train, 2),
        x_test=functional.avg_pool2d(data.x_test, 2),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = mlp((16, 12, 8, 10))
    how = Training(epochs=60, learning_rate=1e-2, batch=64)
    fit(net, coarse, how, generator=generator_for(0, "picture"), progress=False)
    net.eval()
    before = evaluate(net, coarse)[METRIC]
    names = [name for name, _ in net.named_children() if name.startswith("fc")]
    weights = [layer_of(name, net.get_submodule(name)).weight for name in names]
    drawings = [
        Drawing(
            draw_network(weights, names=names),
            f"Test error {100 * before:.1f} %. A line is a weight: blue positive, orange negative, "
            f"the darker the larger.",
            "Before",
        )
    ]
    for recipe, what in (("magnitude+ls", "weights"), ("importance-node+ls", "nodes")):
        pruned = prune(net, recipe, 0.3, data=coarse.batches(), progress=False)
        after = evaluate(pruned.model, coarse)[METRIC]
        layers = [pruned.layers[name] for name in names]
        drawings.append(
            Drawing(
                draw_network([x.weight for x in layers], [x.mask for x in layers], names=names),
                f"By `{recipe}` to density {pruned.cost_after.density:.2f}, "
                f"{pruned.cost_after.parameters} of {pruned.cost_before.parameters} parameters "
                f"left: test error {100 * after:.1f} %. Hollow neurons are gone.",
                f"After removing {what}",
            )
        )
    words = Text(
        "A net with 16 inputs (the digits in 4×4 pixels), 12 and 8 hidden units, pruned in two "
        "ways to about the same size. Removing weights thins the synapses; removing nodes takes "
        "whole neurons with all their synapses, and leaves a smaller dense network."
    )
    return Section("What pruning looks like", [words, drawings])
