"""The demonstration: small nets on the digits, pruned by the basic recipes, as one report."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from torch.nn import functional

from prunus.ambient import drawing
from prunus.bench.data.cache import trained
from prunus.bench.data.models import mlp
from prunus.bench.data.sets import Dataset, load_data
from prunus.bench.data.tasks import task
from prunus.bench.data.train import Training, evaluate, fit
from prunus.bench.record import Record
from prunus.bench.statistics.comparison import latency_rows, records_of, report_rows
from prunus.check import whole
from prunus.engine import compare, prune
from prunus.files import Row, Rows, make_folder, write_text
from prunus.layer import layer_of
from prunus.parts import EDGES, NODES
from prunus.presets import recipes
from prunus.progress import progress_bar
from prunus.report.comparison import comparison_page, network_section, task_headline
from prunus.report.footing import footing
from prunus.report.headline import comparison_headline
from prunus.report.network import draw_network
from prunus.report.page import Drawing, Section, Text
from prunus.report.tables import score_rows
from prunus.rng import generator_for
from prunus.scores import BNScale

__all__ = ["BASIC", "DENSITIES", "Demo", "basic_recipes", "run_demo", "trained_recipes"]

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
BASIC = (
    "random-edge",
    "random-node",
    "magnitude",
    "magnitude-row",
    "magnitude-global",
    "wanda",
    "importance-node",
    "l1-filter",
    "dpp-edge",
    "dpp-node",
)
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

    def table(self, net: str) -> list[Row]:
        """Mean test error in percent, a row per recipe, a column per density."""
        rows = self._rows(net)
        return score_rows([{**r, "percent": 100 * r["score"]} for r in rows], "percent")

    def headline(self, net: str) -> list[str]:
        """How far one may prune, by which recipe, and which are not told apart from it."""
        levels = self.dense[net]
        return comparison_headline(self._rows(net), METRIC, sum(levels) / len(levels))

    def _rows(self, net: str) -> list[Row]:
        return [r for r in report_rows(self.records, METRIC) if r["network"] == net]


def run_demo(
    folder: str | Path,
    *,
    nets: Sequence[str] = NETS,
    names: Sequence[str] | None = None,
    densities: Sequence[float] = DENSITIES,
    seeds: int = 3,
    cache: str | Path | None = None,
    workers: int = 1,
    progress: bool | None = None,
    say: Callable[[str], None] | None = None,
) -> Demo:
    """Train, prune by the basic recipes, compact, measure, and write the report.

    Each seed trains a network of its own and prunes it with draws of its own, so that the bands
    show both. Compact networks are timed for the first seed, with nothing else running.

    Args:
        folder: for `report.html` and `records.jsonl`; made if missing.
        nets: tasks on the digits.
        names: recipes; all for trained networks where None.
        densities: kept / total.
        seeds: how many networks of each kind.
        cache: folder of trained networks.
        workers: processes; the records do not depend on it.
        progress: as in `progress_bar`.
        say: called with a line on each stage as it begins.

    Raises:
        ImportError: the extra `demo` is not installed.
        OSError: the folder cannot be written.
    """
    whole("seeds", seeds, low=1)
    out = Path(folder)
    make_folder(out)
    data = load_data("digits")
    chosen = trained_recipes() if names is None else list(names)
    told = say or (lambda stage: None)
    told(f"1 of 4: training {len(nets)} networks × {seeds} seeds on the digits (or reading them)")
    dense = {
        net: [
            trained(task(net), data, seed=seed, cache=cache, progress=progress).metrics[METRIC]
            for seed in range(seeds)
        ]
        for net in nets
    }
    jobs = [(net, seed) for net in nets for seed in range(seeds)]
    told(
        f"2 of 4: pruning each by {len(chosen)} recipes to {len(densities)} densities, "
        f"{len(jobs) * len(chosen) * len(densities)} prunings"
    )
    found: dict[tuple[str, int], list[Record]] = {}
    with progress_bar("pruning networks", len(jobs), progress=progress) as advance:
        for job, rows in _runs(jobs, chosen, densities, cache, workers):
            found[job] = rows
            advance(1)
    told("3 of 4: timing the networks that are smaller, with nothing else running")
    times: dict[Any, dict[str, Any]] = {
        (net, 0, row["recipe"], row["density"]): dict(row)
        for net in nets
        for row in _latencies(net, data, chosen, densities, cache, progress)
    }
    records = [
        replace(r, latency=times.get((r.task, r.model_seed, r.recipe, r.density_asked)))
        for job in jobs
        for r in found[job]
    ]
    own = {net: [r for r in records if r.task == net] for net in nets}
    told("4 of 4: writing the report")
    results = [
        network_section(
            report_rows(own[net], METRIC),
            latency_rows(own[net]),
            metric=METRIC,
            prefix=f"{net}-",
            title=task(net).title,
        )
        for net in nets
    ]
    said = [
        task_headline(report_rows(own[net], METRIC), METRIC, title=task(net).title) for net in nets
    ]
    page = comparison_page(
        [_pictures(data), *results],
        chosen,
        title="prunus: pruning small networks on the digits",
        headline="\n\n".join(said),
        lead=(
            f"{len(nets)} networks, {len(chosen)} recipes, {len(densities)} densities, "
            f"{seeds} seeds: {len(records)} prunings of networks that were trained on "
            f"{len(data.x_train)} images of 8×8 pixels and are tested on {len(data.x_test)}. "
            f"Nothing was trained again after pruning.\n\nAn error of 90 % is guessing. Test "
            f"errors move in steps of {100 / len(data.x_test):.2f} %."
        ),
        footer=footing(data=data.fingerprint, samples=len(data.x_train)),
    )
    lines = "".join(json.dumps(r.to_row(), sort_keys=True, allow_nan=False) + "\n" for r in records)
    return Demo(
        records=records,
        page=write_text(out / "report.html", page),
        lines=write_text(out / "records.jsonl", lines),
        dense=dense,
    )


def trained_recipes() -> list[str]:
    """Names of the recipes for trained networks, which are not part of their training.

    Those for blocks, experts or norms are left out: the networks have none.
    """
    known = {
        name: recipe.schedule
        for name, recipe in recipes.items()
        if recipe.units in (EDGES, NODES) and not isinstance(recipe.score, BNScale)
    }
    return [n for n, s in known.items() if not (s.before_training or s.inside or s.trains)]


def basic_recipes() -> list[str]:
    """The basic recipes, each without and with least squares."""
    return [name for base in BASIC for name in (base, f"{base}+ls")]


def _runs(
    jobs: Sequence[tuple[str, int]],
    names: Sequence[str],
    densities: Sequence[float],
    cache: str | Path | None,
    workers: int,
) -> Iterator[tuple[tuple[str, int], list[Record]]]:
    """Each job with its records, in the order in which they are done."""
    if workers == 1:
        for job in jobs:
            yield _run(job, names, densities, cache)
        return
    parallel = Parallel(n_jobs=workers, return_as="generator_unordered")
    yield from parallel(delayed(_run)(job, names, densities, cache) for job in jobs)


def _run(
    job: tuple[str, int],
    names: Sequence[str],
    densities: Sequence[float],
    cache: str | Path | None,
) -> tuple[tuple[str, int], list[Record]]:
    """Prune one network by every recipe to every density."""
    torch.set_num_threads(1)  # the networks are too small to share out
    net, seed = job
    data = load_data("digits")
    comparison = compare(
        trained(task(net), data, seed=seed, cache=cache).model,
        names,
        list(densities),
        data=data.batches(),
        evaluate=lambda model: evaluate(model, data),
        seeds=[seed],
        metric=METRIC,
        progress=False,
    )
    return job, records_of(comparison, task=net, data=data.fingerprint, model_seed=seed)


def _latencies(
    net: str,
    data: Dataset,
    names: Sequence[str],
    densities: Sequence[float],
    cache: str | Path | None,
    progress: bool | None,
) -> Rows:
    """Dense against compact networks of the node recipes; `+ls` has the same shapes."""
    nodes = [n for n in names if recipes[n].granularity.units == NODES and "+" not in n]
    if not nodes:
        return []
    return compare(
        trained(task(net), data, seed=0, cache=cache).model,
        nodes,
        list(densities),
        data=data.batches(),
        evaluate=lambda model: evaluate(model, data),
        seeds=[0],
        metric=METRIC,
        latency=True,
        progress=progress,
    ).latencies


def _pictures(data: Dataset) -> Section:
    """A net small enough to draw, dense and pruned both ways to the same density."""
    coarse = replace(
        data,
        x_train=functional.avg_pool2d(data.x_train, 2),
        x_test=functional.avg_pool2d(data.x_test, 2),
    )
    net = drawing([torch.default_generator], lambda: mlp((16, 16, 12, 10)), seed=0)
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
        pruned = prune(net, recipe, 0.4, data=coarse.batches(), progress=False)
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
        "A net with 16 inputs (the digits in 4×4 pixels), 16 and 12 hidden units, pruned in two "
        "ways to about the same size. Removing weights thins the synapses; removing nodes takes "
        "whole neurons with all their synapses, and leaves a smaller dense network."
    )
    return Section("What pruning looks like", [words, drawings])
