"""A grid: what may stand in one, field by field, and the cells that it means."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prunus.bench.data.tasks import task
from prunus.bench.data.train import Distil
from prunus.bench.grid.budgets import budget_text, density_text
from prunus.bench.grid.cell import (
    BASELINES,
    RESCORES,
    Cell,
    Settings,
    baselines,
    recipe_of,
    schedule_of,
)
from prunus.bench.grid.compressed import way_of
from prunus.check import unknown, whole
from prunus.presets import resolve
from prunus.schedules import OneShot

__all__ = ["Grid", "cells", "count_said"]


@dataclass(frozen=True)
class Method:
    """A recipe as tables call it, as Python without its schedule, and that schedule, if any."""

    label: str
    recipe: str
    schedule: str | None = None


def _task(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"a task is a name or package.module:attribute, got {name!r}")
    task(name)
    return name


def method_of(entry: Any) -> Method:
    if isinstance(entry, Mapping):
        if set(entry) != {"name", "recipe"}:
            raise ValueError(f"a named recipe has `name` and `recipe`, got {', '.join(entry)}")
        label, text = str(entry["name"]), str(entry["recipe"])
    else:
        label, text = "", str(entry)
    recipe = recipe_of(text)
    label = label or resolve(recipe)[0]
    if recipe.schedule == OneShot():
        return Method(label, repr(recipe))
    bare = recipe
    with contextlib.suppress(ValueError):  # a score that only a training gathers keeps its course
        bare = replace(recipe, schedule=OneShot())
    return Method(label, repr(bare), _schedule(repr(recipe.schedule)))


def _schedule(text: Any) -> str:
    schedule, _, _ = schedule_of(str(text))
    return str(text) if text in ("none", "retrain") else repr(schedule)


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        if value > MOST:
            raise ValueError(f"`seeds` must be at most {MOST}, got {value}")
        return tuple(range(whole("seeds", value, low=1)))
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"seeds are how many, or a list of which, got {value!r}")
    return tuple(whole("seeds", seed, low=0) for seed in value)


def _baseline(name: Any) -> str:
    if not isinstance(name, str) or name not in BASELINES:
        raise unknown("baseline", str(name), BASELINES)
    return str(name)


def _rescore(name: Any) -> str:
    if not isinstance(name, str) or name not in RESCORES:
        raise unknown("way to score masks", str(name), RESCORES)
    return str(name)


def _compress(way: Any) -> str:
    way_of(str(way))
    return " ".join(str(way).split())


def _size(value: Any) -> int:
    return whole("calibration", value, low=1)


def _top(value: Any) -> int | None:
    return None if value is None else whole("top_k", value, low=2)


def _samples(value: Any) -> int | None:
    return None if value is None else whole("certificate", value, low=2)


def _distil(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, Sequence) and all(isinstance(own, int | float) for own in value)
    if not numbers or len(value) != 2:
        raise ValueError(f"distil is [temperature, weight], such as [4.0, 0.9], got {value!r}")
    own = Distil(*value)
    return float(own.temperature), float(own.weight)


def _network(value: Any) -> int | None:
    return None if value is None else whole("network", value, low=0)


def _device(value: Any) -> str:
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"no device {value!r} here ({first})") from None
    return str(value)


MOST = 100_000  # cells of a grid, and seeds


class Grid(BaseModel):
    """task × recipe × budget × schedule × seed, and the null baselines.

    Attributes:
        name: heads the report.
        tasks: names in `prunus.bench.TASKS`, or import paths of a `Task`.
        recipes: names in `prunus.recipes`, recipes as Python, or {name, recipe}. One that has a
            schedule of its own, as `lottery` and `gradual` have, is run by that alone.
        densities: kept / total in (0, 1], or one for each layer: {glob of layers: density}.
        budgets: further budgets, such as {parameters: 10000}, also macs and bytes, and
            {kept: {name: count}}: weights of a layer, or units of a group of nodes.
        schedules: `none`, `retrain`, or a schedule or course as Python.
        seeds: how many, or which. A seed decides the dense network and every draw.
        without: null baselines to switch off, by name.
        calibration: how many training samples calibrate.
        network: the seed of one dense network for all; seeds then draw the samples that calibrate.
        layers: globs of the layers to prune.
        exclude: globs of layers to leave alone.
        top_k: also score the top-k accuracy for this k.
        latency: measure latencies.
        certificate: certify every pruned network on so many test samples.
        rescore: score the same masks applied otherwise, too, as scores with these prefixes:
            `bare`, without compensation; for nodes `emitting`, where removed ones emit f(bias).
        compress: compress every pruned network in these ways and score what the file holds:
            `lossless`, a number of shared values such as `8`, `conv*=256,fc*=32`, or `rate=0.01`
            (nats of held-out loss), followed by `tuned` and `published` where wanted.
        equal_training: all trainings of a schedule from untrained weights together take as many
            epochs as one of the task's.
        distil: [temperature, weight]: trainings after the dense network's own also ask for its
            outputs.
        train: False leaves out the training at the end of schedules of several rounds that need
            none, such as `Refine(rounds=5)`.
        device: where pruning, retraining and scoring run, such as cuda.
        data_dir: folder with the data sets; PRUNUS_DATA where None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tasks: Annotated[list[Annotated[Any, AfterValidator(_task)]], Field(min_length=1)]
    recipes: Annotated[list[Annotated[Any, AfterValidator(method_of)]], Field(min_length=1)]
    densities: list[Annotated[Any, AfterValidator(density_text)]] = []
    budgets: list[Annotated[Any, AfterValidator(budget_text)]] = []
    schedules: Annotated[list[Annotated[Any, AfterValidator(_schedule)]], Field(min_length=1)] = [
        "none"
    ]
    seeds: Annotated[Any, AfterValidator(_seeds)] = (0, 1, 2, 3, 4)
    without: list[Annotated[Any, AfterValidator(_baseline)]] = []
    name: str = "benchmark"
    calibration: Annotated[Any, AfterValidator(_size)] = 1000
    layers: list[str] | None = None
    exclude: list[str] | None = None
    top_k: Annotated[Any, AfterValidator(_top)] = None
    latency: bool = False
    certificate: Annotated[Any, AfterValidator(_samples)] = None
    rescore: list[Annotated[Any, AfterValidator(_rescore)]] = []
    compress: list[Annotated[Any, AfterValidator(_compress)]] = []
    network: Annotated[Any, AfterValidator(_network)] = None
    equal_training: bool = False
    distil: Annotated[Any, AfterValidator(_distil)] = None
    train: bool = True
    device: Annotated[Any, AfterValidator(_device)] = "cpu"
    data_dir: str | None = None


def cells(grid: Grid, *, threads: int = 1) -> list[Cell]:
    """All cells, baselines included, each identity once; cells of one dense network together.

    Raises:
        ValueError: two entries of the grid ask for the same cell; it names both.
    """
    asked = _asked(grid, threads)
    every = dict(asked)
    for null, _ in _nulls(grid, asked):
        every.setdefault(null.id, null)
    place = {name: i for i, name in enumerate(grid.tasks)}
    return sorted(every.values(), key=lambda c: (place[c.task], c.seed))


def count_said(grid: Grid) -> str:
    """How many cells a grid has and of what, in a line."""
    asked = _asked(grid, 1)
    added: dict[str, set[str]] = {}
    known = set(asked)
    for null, name in _nulls(grid, asked):
        if null.id not in known:
            known.add(null.id)
            added.setdefault(name, set()).add(null.id)
    parts = {"task": len(grid.tasks), "recipe": len(grid.recipes),
             "budget": max(1, len(grid.densities) + len(grid.budgets)),
             "schedule": len(grid.schedules), "seed": len(grid.seeds)}  # fmt: skip
    each = " × ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in parts.items())
    said = f"{len(known)} cells: {len(asked)} of the grid ({each})"
    if not added:
        return f"{said}, and no null baselines"
    nulls = ", ".join(f"{len(ids)} {name}" for name, ids in added.items())
    return f"{said}, and {len(known) - len(asked)} null baselines ({nulls}; `without` drops them)"


def _nulls(grid: Grid, asked: Mapping[str, Cell]) -> Iterator[tuple[Cell, str]]:
    """The null baselines of the cells that are asked for, with their names."""
    for cell in asked.values():
        for baseline, null in baselines(cell).items():
            if baseline not in grid.without:
                yield null, baseline


def _asked(grid: Grid, threads: int) -> dict[str, Cell]:
    """The cells that the grid names itself, by identity."""
    settings = Settings(
        calibration=grid.calibration,
        layers=None if grid.layers is None else tuple(grid.layers),
        exclude=None if grid.exclude is None else tuple(grid.exclude),
        top_k=grid.top_k,
        latency=grid.latency,
        certificate=grid.certificate,
        rescore=tuple(sorted(set(grid.rescore))),
        compress=tuple(sorted(set(grid.compress))),
        network=grid.network,
        equal_training=grid.equal_training,
        distil=grid.distil,
        train=grid.train,
        device=grid.device,
        threads=threads,
    )
    once = replace(settings, train=True)  # which trains nothing either way: one identity
    budgets = max(1, len(grid.densities) + len(grid.budgets))
    sizes = [len(grid.tasks), len(grid.recipes), budgets, len(grid.schedules), len(grid.seeds)]
    if math.prod(sizes) > MOST:
        raise ValueError(
            f"The grid has {' × '.join(map(str, sizes))} cells (tasks, recipes, budgets, "
            f"schedules, seeds), more than {MOST}. Cut it into several."
        )
    asked: dict[str, Cell] = {}
    for name in grid.tasks:
        for seed in grid.seeds:
            for method in grid.recipes:
                for budget in budgets_of(grid, method):
                    for schedule in schedules_of(grid, method):
                        cell = Cell(
                            task=name,
                            label=method.label,
                            recipe=method.recipe,
                            budget=budget,
                            schedule=schedule,
                            seed=seed,
                            settings=once if schedule == "none" else settings,
                        )
                        key = cell.id
                        if key in asked:
                            raise ValueError(
                                f"Two cells have one identity: `{asked[key]}` and `{cell}`. "
                                f"Remove the repeated task, recipe, density, schedule or seed."
                            )
                        asked[key] = cell
    labels: dict[str, str] = {}
    for method in grid.recipes:
        if labels.setdefault(method.label, method.recipe) != method.recipe:
            raise ValueError(f"Two recipes are called {method.label!r}. Give them two names.")
    return asked


def schedules_of(grid: Grid, method: Method) -> list[str]:
    return grid.schedules if method.schedule is None else [method.schedule]


def budgets_of(grid: Grid, method: Method) -> list[str]:
    granularity = recipe_of(method.recipe).granularity
    if granularity.fixed is not None:
        n, m = granularity.fixed
        return [f"Budget(density={n / m!r})"]
    return [*grid.densities, *grid.budgets]
