"""`compare`: many recipes, densities and seeds on one model, calibrated once."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import plainly, theirs
from prunus.budget import Budget, Plan
from prunus.calibration import Calibration, calibrate
from prunus.calibration.batches import Batches, call, first_of, size_of, to_device
from prunus.calibration.place import device_of
from prunus.calibration.statistics import combined
from prunus.check import whole
from prunus.cost import measure_latency, speedup
from prunus.courses import not_between
from prunus.engine.comparison import Comparison
from prunus.engine.prune import prune
from prunus.joint import is_network
from prunus.parts import NODES
from prunus.presets import resolve
from prunus.progress import progress_bar
from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.schedules import Step

__all__ = ["Comparison", "compare"]


@plainly
def compare(
    model: nn.Module,
    recipes: Sequence[str | Recipe] | Mapping[str, str | Recipe],
    densities: Sequence[Any],
    *,
    data: Any,
    evaluate: Callable[[nn.Module], Any],
    seeds: int | Sequence[int] = 5,
    train: Callable[[nn.Module, Step], None] | None = None,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    metric: str | None = None,
    latency: bool = False,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Prune one model by many recipes at many densities, and evaluate each.

    The data are read once. Recipes that differ in their compensation alone share their masks.
    A recipe without random draws (and without training) runs once, not once per seed.

    Args:
        model: the network; untouched.
        recipes: names or recipes, or {label: name or recipe}.
        densities: densities, budgets or plans, as `prune` takes them.
        data: batches, or a `Calibration`.
        evaluate: a function model -> float or dict of floats.
        seeds: how many, or which.
        train: as for `prune`.
        layers, exclude, loss, device: as for `prune`.
        metric: the entry of `evaluate`'s dict to show; the first where None.
        latency: measure the compact networks of node recipes, beside the dense one.
        progress: show bars; None shows them on a terminal after two seconds.

    Returns:
        a `Comparison`.
    """
    if isinstance(recipes, str | Recipe):
        raise TypeError(f"`recipes` must be a list of recipes, got one. Pass [{recipes!r}].")
    if not isinstance(densities, Sequence) or isinstance(densities, str):
        raise TypeError(
            f"`densities` must be a list of densities, got {type(densities).__name__}. "
            f"Pass them as a list."
        )
    methods = _labelled(recipes)
    if not methods or not densities:
        raise ValueError("`recipes` and `densities` must not be empty. Give at least one of each.")
    chosen = (
        list(range(whole("seeds", seeds, low=1)))
        if isinstance(seeds, int)
        else [whole("seeds", s, low=0) for s in seeds]
    )
    if not chosen:
        raise ValueError("`seeds` must not be empty. Give a number of seeds, or which.")
    if len({*chosen}) < len(chosen):  # one draw counted twice would pass for less spread
        raise ValueError(f"`seeds` must differ, got {chosen}. Give each once.")
    evaluate = theirs(evaluate)
    # One reading of a one-shot iterator, known to all that would read it again.
    source = data if isinstance(data, Calibration) else Batches(data)
    timing = first_of(source.peek(), 64) if isinstance(source, Batches) else source.example
    dense = _as_metrics(evaluate(model))
    shown = metric if metric is not None else next(iter(dense))
    if shown not in dense:
        raise ValueError(f"`evaluate` gives {sorted(dense)}, not {shown!r}. Name one of them.")
    shared = _shared_calibration(model, methods, source, loss, device, progress)
    cells = [
        (label, density, seed)
        for density in densities
        for seed in chosen
        for label in methods
        if seed == chosen[0] or train is not None or _random(methods[label])
    ]
    records: list[dict[str, Any]] = []
    latencies: list[dict[str, Any]] = []
    pictures: dict[tuple[str, float], Pruned] = {}
    memo: dict[Any, Any] = {}
    last: tuple[int, int] | None = None
    with progress_bar("comparing recipes", len(cells), progress=progress) as advance:
        for label, density, seed in cells:
            if last != (id(density), seed):
                memo.clear()
                last = (id(density), seed)
            method = methods[label]
            begun = time.perf_counter()
            pruned = prune(
                model,
                method,
                density,
                data=_data_for(method, density, shared, source),
                layers=layers,
                exclude=exclude,
                loss=loss,
                train=train,
                seed=seed,
                device=device,
                progress=False,
                memo=memo,
            )
            seconds = time.perf_counter() - begun
            after = _as_metrics(evaluate(pruned.model))
            records.append(_record(label, density, seed, pruned, dense, after, seconds))
            if seed == chosen[0] and isinstance(density, int | float):
                pictures[label, float(density)] = replace(pruned, dense=None)
                if latency and method.units == NODES and timing is not None:
                    latencies.append(_timed(label, density, model, pruned, timing))
            advance(1)
    return Comparison(
        records=records,
        dense=dense,
        metric=shown,
        recipes=methods,
        latencies=latencies,
        pictures=pictures,
    )


def _labelled(recipes: Sequence[str | Recipe] | Mapping[str, str | Recipe]) -> dict[str, Recipe]:
    """The recipes by the names they go by in the records.

    Raises:
        ValueError: two recipes of one name, such as two with functions that are both a `<lambda>`;
            or one that works inside training.
    """
    if isinstance(recipes, Mapping):
        named = [(label, resolve(recipe)[1]) for label, recipe in recipes.items()]
    else:
        named = [resolve(recipe) for recipe in recipes]
    methods: dict[str, Recipe] = {}
    for label, recipe in named:
        if recipe.schedule.inside:
            raise not_between(f"Recipe {label!r}")
        if methods.setdefault(label, recipe) != recipe:
            raise ValueError(
                f"Two recipes have the same name {label!r}: {recipe!r}. Pass {{label: recipe}}."
            )
    return methods


def _shared_calibration(
    model: nn.Module,
    methods: Mapping[str, Recipe],
    data: Calibration | Batches,
    loss: Callable[[Any, Any], Tensor] | None,
    device: str | torch.device | None,
    progress: bool | None,
) -> Calibration:
    if isinstance(data, Calibration):
        return data
    wanted = combined(["gram", *(s for m in methods.values() for s in m.statistics)])
    return calibrate(model, data, wanted, loss=loss, device=device, progress=progress)


def _data_for(
    method: Recipe, density: Any, shared: Calibration, data: Calibration | Batches
) -> Calibration | Batches:
    """The shared statistics, or the batches where a recipe or a plan reads them itself."""
    several = len(list(method.schedule())) > 1
    planned = method.allocation.measures_curves or (
        isinstance(density, Budget) and density.gap is not None
    )
    reads = method.inputs == "pruned" or is_network(method.selection)
    return data if reads or several or planned else shared


def _random(method: Recipe) -> bool:
    return method.selection.random


def _as_metrics(value: Any) -> dict[str, float]:
    given = value if isinstance(value, Mapping) else {"metric": value}
    try:
        found = {str(key): float(number) for key, number in given.items()}
    except (TypeError, ValueError):
        raise TypeError(
            f"`evaluate` must return a number or a dict of numbers, got {value!r}."
        ) from None
    if not found:
        raise ValueError("`evaluate` returned an empty dict. Give at least one metric.")
    return found


def _record(
    label: str,
    density: Any,
    seed: int,
    pruned: Pruned,
    dense: Mapping[str, float],
    after: Mapping[str, float],
    seconds: float,
) -> dict[str, Any]:
    errors = {name: r.error for name, r in pruned.layers.items() if r.error is not None}
    return {
        "recipe": label,
        "recipe_digest": pruned.recipe.digest,
        "density": density if isinstance(density, int | float) else _shown(density),
        "density_met": pruned.cost_after.density,
        "model_density": pruned.cost_after.model_density,
        "seed": seed,
        **{f"{key}_before": value for key, value in dense.items()},
        **after,
        "parameters": pruned.cost_after.parameters,
        "parameters_before": pruned.cost_before.parameters,
        "macs": pruned.cost_after.macs,
        "macs_before": pruned.cost_before.macs,
        "bytes": pruned.cost_after.bytes,
        "bytes_before": pruned.cost_before.bytes,
        "layer_errors": errors,
        "seconds": seconds,
    }


def _shown(density: Any) -> str:
    if isinstance(density, Budget):
        return f"{density.target}={density.value:g}"
    if isinstance(density, Plan):
        return f"plan {density.density:.4g}"
    return str(density)


def _timed(
    label: str, density: Any, model: nn.Module, pruned: Pruned, example: Any
) -> dict[str, Any]:
    """Latency of the compact network beside the dense one, at the batch sizes 1 and 64 at most."""
    batch = to_device(example, device_of(model))
    smaller = pruned.compact(batch)
    full, small = measure_latency(
        [model, smaller], lambda m: call(m, batch), batch=size_of(batch) or 1
    )
    gain = speedup(full, small)
    return {
        "recipe": label,
        "density": float(density),
        "batch": full.batch,
        "threads": full.threads,
        "dense_seconds": full.median,
        "compact_seconds": small.median,
        "speedup": gain.ratio,
        "speedup_low": gain.low,
        "speedup_high": gain.high,
        "benefit": gain.verdict,
        "parameters": sum(p.numel() for p in smaller.parameters()),
        "parameters_before": sum(p.numel() for p in model.parameters()),
    }
