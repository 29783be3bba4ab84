"""A grid from a YAML file, checked as a whole before anything runs."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from prunus.bench.data.tasks import fresh_model, task
from prunus.bench.grid.budgets import budget_of
from prunus.bench.grid.cell import recipe_of
from prunus.bench.grid.config import Grid, budgets_of, cells, method_of, schedules_of
from prunus.bench.grid.inside import unfit_schedules
from prunus.bench.grid.yaml_text import NoYaml, read_yaml
from prunus.budget import Budget, Plan, densities_of
from prunus.calibration.select import matching, prunable
from prunus.check import unknown
from prunus.reading import text_of
from prunus.weights import Weight

__all__ = ["load_grid", "make_grid"]


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
    needs = [_fixes_density(entry) for entry in recipes] if isinstance(recipes, list) else []
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
    used = {schedule for method in grid.recipes for schedule in schedules_of(grid, method)}
    if grid.rescore and not used <= {"none", "retrain"}:
        mistakes.append(
            "rescore: masks of several rounds have no scores without them. Leave it out, or give "
            "schedules none and retrain."
        )
    mistakes += unfit_schedules(
        grid.tasks, _pairs(grid), equal=grid.equal_training, train=grid.train
    )
    targets = [budget_of(text) for text in [*grid.densities, *grid.budgets]]
    by_layer = [target for target in targets if not isinstance(target, Budget)]
    if grid.layers is None and grid.exclude is None and not by_layer:
        return mistakes
    edges = not all(recipe_of(m.recipe).granularity.shrinks for m in grid.recipes)
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
        for schedule in schedules_of(grid, method)
        for budget in budgets_of(grid, method)
    ]


def _fits(plan: Plan, layers: Mapping[str, Weight], edges: bool) -> None:
    for name, count in plan.kept.items():
        layer = name.partition("#")[0]  # a layer's units may lie in several groups
        if layer not in layers:
            raise unknown("layer in `kept`", name, layers)
        total = layers[layer].matrix().numel()
        if edges and isinstance(count, int) and count > total:
            raise ValueError(f"`kept` asks for {count} of the {total} weights of {name!r}.")


def _fixes_density(entry: Any) -> bool:
    """Whether an entry fixes its own density, as N:M does."""
    try:
        return recipe_of(method_of(entry).recipe).granularity.fixed is not None
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
