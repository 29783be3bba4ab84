"""A grid of cells from a YAML file, checked as a whole before anything runs."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prunus.bench.data.tasks import fresh_model, task
from prunus.bench.data.train import Distil
from prunus.bench.grid.budgets import budget_of, budget_text, density_text
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
from prunus.bench.grid.inside import unfit_schedules
from prunus.bench.grid.yaml_text import NoYaml, read_yaml
from prunus.budget import Budget, Plan, densities_of
from prunus.calibration.select import matching, prunable
from prunus.check import unknown, whole
from prunus.parts import NODES
from prunus.presets import resolve
from prunus.reading import text_of
from prunus.schedules import OneShot
from prunus.weights import Weight

__all__ = ["Grid", "cells", "count_said", "load_grid", "make_grid"]


@dataclass(frozen=True)
class _Method:
    """A recipe as tables call it, as Python without its schedule, and that schedule, if any."""

    label: str
    recipe: str
    schedule: str | None = None


def _task(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"a task is a name or package.module:attribute, got {name!r}")
    task(name)
    return name


def _method(entry: Any) -> _Method:
    if isinstance(entry, Mapping):
        if set(entry) != {"name", "recipe"}:
            raise ValueError(f"a named recipe has `name` and `recipe`, got {', '.join(entry)}")
        label, text = str(entry["name"]), str(entry["recipe"])
    else:
        label, text = "", str(entry)
    recipe = recipe_of(text)
    label = label or resolve(recipe)[0]
    if recipe.schedule == OneShot():
        return _Method(label, repr(recipe))
    bare = recipe
    with contextlib.suppress(ValueError):  # a score that only a training gathers keeps its course
        bare = replace(recipe, schedule=OneShot())
    return _Method(label, repr(bare), _schedule(repr(recipe.schedule)))


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
        device: where pruning, retraining and scoring run, such as cuda.
        data_dir: folder with the data sets; PRUNUS_DATA where None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tasks: Annotated[list[Annotated[Any, AfterValidator(_task)]], Field(min_length=1)]
    recipes: Annotated[list[Annotated[Any, AfterValidator(_method)]], Field(min_length=1)]
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
    device: Annotated[Any, AfterValidator(_device)] = "cpu"
    data_dir: str | None = None


def load_grid(path: str | os.PathLike[str] | None, changes: Sequence[str] = ()) -> Grid:
    """The grid of a YAML file, with `key=value` changes applied; keys may be dotted.

    Raises:
        ValueError: with every mistake at once, each with its line and its place in the file.
        FileNotFoundError: no such file.
    """
    source = "grid" if path is None else str(path)
    values, tree = ({}, None) if path is None else read_yaml(text_of(Path(path)), source)
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold keys such as tasks and recipes, got {values!r:.60}.")
    changed = [_change(values, change) for change in changes]
    return _checked(values, source, tree, changed)


def make_grid(values: Mapping[str, Any]) -> Grid:
    """The grid of a mapping, with errors as `load_grid` gives them."""
    return _checked(dict(values), "grid", None, [])


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
        device=grid.device,
        threads=threads,
    )
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
                for budget in _budgets(grid, method):
                    for schedule in _schedules(grid, method):
                        cell = Cell(
                            task=name,
                            label=method.label,
                            recipe=method.recipe,
                            budget=budget,
                            schedule=schedule,
                            seed=seed,
                            settings=settings,
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


def _schedules(grid: Grid, method: _Method) -> list[str]:
    return grid.schedules if method.schedule is None else [method.schedule]


def _budgets(grid: Grid, method: _Method) -> list[str]:
    granularity = recipe_of(method.recipe).granularity
    if granularity.fixed is not None:
        n, m = granularity.fixed
        return [f"Budget(density={n / m!r})"]
    return [*grid.densities, *grid.budgets]


def _checked(values: dict[str, Any], source: str, tree: Any, changed: list[str]) -> Grid:
    mistakes: list[str] = []
    grid = None
    try:
        grid = Grid.model_validate(values)
    except ValidationError as error:
        for item in error.errors():
            place = ".".join(map(str, item["loc"]))
            mistakes.append(f"{_where(tree, item['loc'], changed)}{place}: {_words(item)}")
    recipes = values.get("recipes")
    needs = [_recipe_budgets(entry) for entry in recipes] if isinstance(recipes, list) else []
    if not values.get("densities") and not values.get("budgets") and not all(needs):
        mistakes.append("densities: missing. Give densities, budgets or both.")
    if grid is not None and not mistakes:
        try:
            cells(grid)
        except ValueError as error:
            mistakes.append(str(error))
        mistakes += _unfit(grid)
    if mistakes:
        head = f"{source}: {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        raise ValueError("\n  ".join([head, *mistakes]))
    assert grid is not None
    return grid


def _unfit(grid: Grid) -> list[str]:
    """What does not fit together: layers that a network lacks, scores that no cell has."""
    mistakes = []
    used = {schedule for method in grid.recipes for schedule in _schedules(grid, method)}
    if grid.rescore and not used <= {"none", "retrain"}:
        mistakes.append(
            "rescore: masks of several rounds have no scores without them. Leave it out, or give "
            "schedules none and retrain."
        )
    mistakes += unfit_schedules(grid.tasks, _pairs(grid), equal=grid.equal_training)
    targets = [budget_of(text) for text in [*grid.densities, *grid.budgets]]
    by_layer = [target for target in targets if not isinstance(target, Budget)]
    if grid.layers is None and grid.exclude is None and not by_layer:
        return mistakes
    edges = not all(recipe_of(m.recipe).granularity.units == NODES for m in grid.recipes)
    for name in grid.tasks:
        fresh = fresh_model(task(name), 0)
        weights, refused = prunable(fresh, asked=grid.layers is not None)
        try:
            known = matching(weights, grid.layers, grid.exclude, refused)
            for target in by_layer:
                if isinstance(target, Plan):
                    _fits(target, {layer: weights[layer] for layer in known}, edges)
                else:
                    densities_of(target, known)
        except ValueError as error:
            mistakes.append(f"{name}: {error}")
    return mistakes


def _pairs(grid: Grid) -> list[tuple[str, str, str, str]]:
    """(label, recipe, schedule, budget) of all that a task is asked for."""
    return [
        (method.label, method.recipe, schedule, budget)
        for method in grid.recipes
        for schedule in _schedules(grid, method)
        for budget in _budgets(grid, method)
    ]


def _fits(plan: Plan, layers: Mapping[str, Weight], edges: bool) -> None:
    for name, count in plan.kept.items():
        layer = name.partition("#")[0]  # a layer's units may lie in several groups
        if layer not in layers:
            raise unknown("layer in `kept`", name, layers)
        total = layers[layer].matrix().numel()
        if edges and isinstance(count, int) and count > total:
            raise ValueError(f"`kept` asks for {count} of the {total} weights of {name!r}.")


def _recipe_budgets(entry: Any) -> bool:
    """Whether an entry fixes its own density, as N:M does."""
    try:
        return recipe_of(_method(entry).recipe).granularity.fixed is not None
    except (ValueError, TypeError):
        return False


def _words(item: Mapping[str, Any]) -> str:
    known = list(Grid.model_fields)
    if item["type"] == "extra_forbidden":
        return str(unknown("key", str(item["loc"][-1]), known))
    if item["type"] == "missing":
        return "missing"
    return str(item["msg"]).removeprefix("Value error, ")


def _where(tree: Any, place: Sequence[Any], changed: Sequence[str]) -> str:
    """`line N, `, or where a --set made the value."""
    dotted = ".".join(map(str, place))
    if any(dotted == key or dotted.startswith(f"{key}.") for key in changed):
        return "--set "
    node, line = tree, None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pair = next((p for p in node.value if p[0].value == str(part)), None)
            if pair is None:
                break
            node, line = pair[1], pair[0].start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return "" if line is None else f"line {line + 1}, "


def _change(values: dict[str, Any], change: str) -> str:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ValueError(f"--set takes key=value, got {change!r}.")
    target: Any = values
    parts = key.split(".")
    try:
        for part in parts[:-1]:
            target = target[int(part)] if isinstance(target, list) else target[part]
        value, _ = read_yaml(text.encode(), "it")
        if isinstance(target, list):
            target[int(parts[-1])] = value
        else:
            target[parts[-1]] = value
    except NoYaml:
        raise ValueError(f"--set {change}: {text!r:.80} is no value.") from None
    except (KeyError, IndexError, ValueError, TypeError):
        raise ValueError(f"--set {change}: the grid has no place {key!r} to change.") from None
    return key
