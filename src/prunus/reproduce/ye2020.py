"""Ye et al. (2020a, b): greedy subnetworks, their rates, and what one Gram matrix does better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prunus.bench.data.cache import trained
from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import task
from prunus.bench.record import Record
from prunus.bench.statistics.intervals import t_interval
from prunus.files import Row
from prunus.imitation import line_steps, refit_steps, uniform_steps
from prunus.presets import recipes
from prunus.progress import progress_bar
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.harness import Harness, carry_out
from prunus.reproduce.ye2020_claims import claims
from prunus.reproduce.ye2020_layer import Hidden, hidden_layers, sets_of
from prunus.rng import generator_for

__all__ = ["account", "grids", "measured", "reproduce"]

STEPS = (10, 20, 50, 100, 200, 500, 1000, 2000)
COUNTS = ([10, 20, 30, 50, 75, 100], [10, 20, 30, 50])  # of the first and the second hidden layer
SEEDS = 5
SAMPLES = 5000  # of the training set at most
MEASURES = ("test error", "output error", "layer error")
DENSITIES = (0.12, 0.06, 0.03)
BARE = ("importance-node", "greedy-forward", "greedy-imitation", "greedy-scales", "greedy-global")
WITH_LS = ("importance-node", "random-node", "obs-node", *BARE[1:], "forward-node")
SEQUENTIAL = ("importance-node", "greedy-scales", "forward-node")


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """Rates of the three step rules, sets of equal size, and whole networks pruned.

    Args:
        scale: "small": networks on the digits, 64-300-100-10 and a convolutional one; "full":
            LeNet-300-100 on MNIST; five networks each.
        seed: of the first network.
        data_dir: folder with the data sets.
        progress: as in `progress_board`.
        harness: where the records lie and who runs the cells; throw-away records by default.
    """
    records = carry_out(grids(scale, seed), harness, data_dir=data_dir, progress=progress)
    rows: list[Row] = []
    with progress_bar("layers by themselves", SEEDS, progress=progress) as advance:
        for own in range(seed, seed + SEEDS):
            rows += measured(_task(scale), own, data_dir)
            advance(1)
    return account(scale, rows, records)


def _task(scale: Scale) -> str:
    return "mnist-lenet300" if scale == "full" else "digits-mlp"


def grids(scale: Scale, seed: int = 0) -> list[Row]:
    """Whole networks: every rule bare and with least squares, and some on pruned inputs."""
    seeds = list(range(seed, seed + SEEDS))
    common = {
        "name": "ye2020", "schedules": ["none"], "seeds": seeds, "calibration": SAMPLES,
        "without": ["random", "random-layers", "small-dense", "no-compensation", "no-retraining"],
    }  # fmt: skip
    rules: list[Any] = [*BARE, *(f"{name}+ls" for name in WITH_LS)]
    rules += [{"name": f"{n}+ls, pruned inputs", "recipe": _sequential(n)} for n in SEQUENTIAL]
    found = [{"tasks": [_task(scale)], "recipes": rules, "densities": list(DENSITIES), **common}]
    if scale == "small":
        found.append(
            {
                "tasks": ["digits-cnn"],
                "recipes": rules,
                "densities": list(DENSITIES[:2]),
                **common,
            }
        )
    return found


def _sequential(name: str) -> str:
    return repr(replace(recipes[f"{name}+ls"], inputs="pruned"))


def measured(name: str, seed: int, data_dir: Path | None) -> list[Row]:
    """One network: D after so many steps, and the errors of every rule at every count."""
    data: Dataset = task(name).data(data_dir=data_dir)
    model = trained(task(name), data, seed=seed, progress=False).model
    assert isinstance(model, torch.nn.Sequential)
    rows: list[Row] = []
    for place, hidden in enumerate(hidden_layers(model, data, SAMPLES)):
        common = {"network": name, "seed": seed, "layer": hidden.name}
        rows += [{**common, **row} for row in _rates(hidden)]
        generator = generator_for(seed, "ye2020", hidden.name)
        for rule, k, kept, scale in sets_of(hidden, COUNTS[place], seed=generator):
            for ls in (False, True):
                judged = hidden.judged(kept, scale, ls=ls)
                named = f"{rule}+ls" if ls else rule
                rows += [
                    {**common, "rule": named, "count": k, "measure": measure, "value": value}
                    for measure, value in judged.items()
                ]
    return rows


def _rates(hidden: Hidden) -> list[Row]:
    """D relative to c after so many steps; of refitted factors after so many classes."""
    form = hidden.local
    runs = {
        "uniform, multiset": uniform_steps(form, repeats=True, steps=max(STEPS)),
        "uniform, set": uniform_steps(form),
        "line": line_steps(form, steps=max(STEPS)),
        "refit": refit_steps(form),
    }
    rows = []
    for rule, run in runs.items():
        at = (10, 20, 30, 50, 100, 150, 200) if rule == "refit" else STEPS
        rows += [
            {
                "rule": rule,
                "count": n,
                "measure": "D",
                # Rounding may leave it below 0 where the sum of all is met.
                "value": max(float(run.error[n - 1]), 0.0) / form.constant,
            }
            for n in at
            if n <= len(run.error)
        ]
    return rows


def account(scale: Scale, layers: Sequence[Row], records: Sequence[Record]) -> Reproduction:
    """Tables and figure of what was measured."""
    pruned: list[Row] = [
        {
            "network": r.task, "seed": r.seed, "layer": "all", "rule": r.recipe,
            "count": r.density_asked, "measure": "test error",
            "value": 100 * r.after["test_error"],
        }
        for r in records
    ]  # fmt: skip
    every = [*layers, *pruned]
    rows = _means(every)
    network = _task(scale)
    names = list(dict.fromkeys(r["layer"] for r in layers))
    tables: dict[str, list[dict[str, str]]] = {}
    for layer in names:
        tables[f"{layer}: D / E‖y‖² after so many steps, or classes for refit"] = _table(
            rows, network, layer, "D"
        )
        for measure in MEASURES:
            tables[f"{layer}: {measure} at so many classes"] = _table(rows, network, layer, measure)
    for own in dict.fromkeys(r["network"] for r in pruned):
        tables[f"{own}: test error (%) of the whole network at density"] = _table(
            rows, own, "all", "test error"
        )
    tables["What was said, and what was found"] = claims(every, network)
    return Reproduction(
        name="ye2020",
        title="Greedy subnetworks from one Gram matrix",
        paper="Ye et al. (2020), Good subnetworks provably exist: pruning via greedy forward "
        "selection; Ye, Wu, Liu (2020), Greedy optimization provably wins the lottery",
        conditions=[
            f"{SEEDS} networks; means with half of Student's interval at 95 %. Claims are judged "
            f"on differences paired by network, each by itself: of twenty that are at their border "
            f"one is expected to be told wrongly.",
            f"The published search is ours, from the constants of the authors' code: 128 samples "
            f"and 50 candidates a pick, without their training between layers. Everything else "
            f"reads the second moments of {SAMPLES} training samples, or of all where fewer.",
            "D is the error at the next layer's outputs when classes are scaled, relative to what "
            "all classes give; output error is that of the logits, relative to their square.",
            "Theorem texts were not at hand: rates are set beside those of the abstracts.",
        ],
        rows=rows,
        figures={"ye2020-rates": _figure(rows, network)},
        tables={title: lines for title, lines in tables.items() if lines},
    )


def _means(rows: Sequence[Row]) -> list[Row]:
    groups: dict[tuple[Any, ...], list[float]] = {}
    for r in rows:
        key = (r["network"], r["layer"], r["measure"], r["rule"], r["count"])
        groups.setdefault(key, []).append(r["value"])
    found = []
    for (network, layer, measure, rule, count), values in groups.items():
        ends = t_interval(values)
        found.append(
            {
                "network": network, "layer": layer, "measure": measure, "rule": rule,
                "count": count, "networks": len(values), "mean": math.fsum(values) / len(values),
                "low": None if ends is None else ends[0],
                "high": None if ends is None else ends[1],
            }
        )  # fmt: skip
    return found


def _table(rows: Sequence[Row], network: str, layer: str, measure: str) -> list[dict[str, str]]:
    """A line for each rule, a column for each count."""
    own = [r for r in rows if (r["network"], r["layer"], r["measure"]) == (network, layer, measure)]
    counts = sorted({r["count"] for r in own}, reverse=layer == "all")
    lines: dict[str, dict[str, str]] = {}
    for r in own:
        lines.setdefault(r["rule"], {})[str(r["count"])] = _shown(r)
    return [
        {"rule": rule} | {str(n): line.get(str(n), "–") for n in counts}
        for rule, line in lines.items()
    ]


def _shown(row: Mapping[str, Any]) -> str:
    mean, low, high = row["mean"], row["low"], row["high"]
    form = ".2f" if row["measure"] == "test error" else ".2g"
    reach = "" if low is None else f" ± {(high - low) / 2:{form}}"
    return f"{mean:{form}}{reach}"


def _figure(rows: Sequence[Row], network: str) -> tuple[Any, list[Row]]:
    """D of all step rules in both hidden layers."""
    drawn = []
    for r in rows:
        if r["network"] != network or r["measure"] != "D" or r["mean"] <= 0:
            continue
        point = {
            "panel": f"{network} {r['layer']}", "series": r["rule"], "kind": "measured",
            "steps": r["count"], "D": r["mean"],
        }  # fmt: skip
        if r["low"] is not None and r["low"] > 0:
            point |= {"low": r["low"], "high": r["high"]}
        drawn.append(point)
    for panel in dict.fromkeys(r["panel"] for r in drawn):
        last = next(
            r for r in reversed(drawn)
            if r["panel"] == panel and r["series"] == "uniform, multiset"
        )  # fmt: skip
        drawn += [
            {
                "panel": panel, "series": "slope −2", "kind": "theory", "steps": n,
                "D": last["D"] * (last["steps"] / n) ** 2,
            }
            for n in STEPS
        ]  # fmt: skip
    chart = figure(
        drawn, x="steps", y="D", x_title="steps, or classes for refit", y_title="D / E‖y‖²",
        facet="panel", x_scale="log", y_scale="log",
    )  # fmt: skip
    return chart, drawn
