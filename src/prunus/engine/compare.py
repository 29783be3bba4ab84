"""`compare`: many recipes, densities and seeds on one model, calibrated once."""

import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

import torch
from torch import nn

from prunus.ambient import plainly
from prunus.budget import Budget, Density
from prunus.calibration import Calibration
from prunus.calibration.batches import Batches, first_of
from prunus.check import whole
from prunus.courses import not_between
from prunus.engine.calibrated import data_for, shared_calibration
from prunus.engine.comparison import Comparison
from prunus.engine.judge import example_of, judge_of
from prunus.engine.kept import Kept, identity, run_of
from prunus.engine.prune import prune
from prunus.engine.runs import as_metrics, latency_of, record_of
from prunus.engine.unit import Picked
from prunus.files import Row
from prunus.hints import Data, Evaluate, Loss
from prunus.presets import resolve
from prunus.progress import progress_bar
from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.schedules import Step
from prunus.threads import sparing

__all__ = ["Comparison", "compare"]


@plainly
@sparing
def compare(
    model: nn.Module,
    recipes: Sequence[str | Recipe] | Mapping[str, str | Recipe],
    densities: Sequence[Density],
    *,
    data: Data,
    evaluate: Evaluate,
    seeds: int | Sequence[int] = 5,
    train: Callable[[nn.Module, Step], None] | None = None,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    loss: Loss | None = None,
    metric: str | None = None,
    latency: bool = False,
    device: str | torch.device | None = None,
    records: str | os.PathLike[str] | None = None,
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
        records: a file to which every run is added as it is done, a line of JSON each. Stop the
            comparison in any way and call it again: runs that lie there are read and not run.
            Runs of another model, other data, options or version of prunus are not taken for
            these; what your functions do cannot be told, so name another file when they change.
            Networks of runs that were read back are not kept for drawing (`pictures`).
        progress: show bars; None shows them on a terminal after two seconds.

    Returns:
        a `Comparison`.

    Raises:
        ValueError: `evaluate` names a metric like a field of the records; or `records` holds runs
            in which it said another thing of the dense model.
        OSError: `records` cannot be written, or the disk is full; the runs before are whole.
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
    if records is not None:
        Kept(records).close()  # what is wrong with it is said now, not after the calibration
    # One reading of a one-shot iterator, known to all that would read it again.
    source = data if isinstance(data, Calibration) else Batches(data)
    timing = first_of(source.peek(), 64) if isinstance(source, Batches) else source.example
    evaluate = judge_of(evaluate, model, example_of(source))
    dense = as_metrics(evaluate(model))
    shown = metric if metric is not None else next(iter(dense))
    if shown not in dense:
        raise ValueError(f"`evaluate` gives {sorted(dense)}, not {shown!r}. Name one of them.")
    shared = shared_calibration(model, methods, source, loss, device, progress, layers)
    cells = [
        (label, density, seed)
        for density in densities
        for seed in chosen
        for label in methods
        if seed == chosen[0] or train is not None or _random(methods[label])
    ]
    shared_by = identity(
        model,
        shared.fingerprint,
        {"layers": layers, "exclude": exclude, "device": device, "metrics": sorted(dense)},
        [evaluate, *filter(None, (train, loss))],
    )
    rows: list[Row] = []
    latencies: list[Row] = []
    pictures: dict[tuple[str, float], Pruned] = {}
    memo: dict[Hashable, Picked] = {}
    last: tuple[int, int] | None = None
    with (
        ExitStack() as stack,
        progress_bar("comparing recipes", len(cells), progress=progress) as advance,
    ):
        kept = None if records is None else stack.enter_context(closing(Kept(records)))
        for label, density, seed in cells:
            method = methods[label]
            run = run_of(shared_by, label, method, density, seed)
            # of a network that is drawn, and timed where asked for
            number = density if seed == chosen[0] and isinstance(density, int | float) else None
            timed = latency and number is not None and timing is not None
            timed = timed and method.granularity.shrinks
            known = None if kept is None else kept.find(run, dense, shown, latency=timed)
            if known is not None:
                record, time_taken = known
            else:
                if last != (id(density), seed):
                    memo.clear()
                    last = (id(density), seed)
                begun = time.perf_counter()
                pruned = prune(
                    model,
                    method,
                    density,
                    data=data_for(method, density, shared, source),
                    layers=layers,
                    exclude=exclude,
                    loss=loss,
                    train=train,
                    evaluate=evaluate if _searched(density) else None,
                    seed=seed,
                    device=device,
                    progress=False,
                    memo=memo,
                )
                seconds = time.perf_counter() - begun
                after = as_metrics(evaluate(pruned.model))
                record = record_of(label, density, seed, pruned, dense, after, seconds)
                time_taken = None
                if number is not None:
                    pictures[label, float(number)] = replace(pruned, dense=None)
                    if timed:
                        time_taken = latency_of(label, number, model, pruned, timing)
                if kept is not None:
                    record = {"run": run, **record}
                    kept.add(record, time_taken)
            rows.append(record)
            latencies += [] if time_taken is None or not timed else [time_taken]
            advance(1)
    return Comparison(
        records=rows,
        dense=dense,
        metric=shown,
        recipes=methods,
        latencies=latencies,
        pictures=pictures,
        data_fingerprint=shared.fingerprint,
        samples=shared.samples,
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


def _searched(density: Density) -> bool:
    """Whether it is `evaluate` that decides on the density."""
    return isinstance(density, Budget) and density.drop is not None


def _random(method: Recipe) -> bool:
    return method.selection.random
