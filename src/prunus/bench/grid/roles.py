"""What a cell does by its role: a pruning by its recipe, or a null baseline of its own kind."""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.ambient import drawing, quiet
from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import Task, fresh_model, task
from prunus.bench.grid.budgets import Target, budget_of
from prunus.bench.grid.cell import Cell, recipe_of, rewound_to, schedule_of
from prunus.bench.grid.compressed import compressed_ways
from prunus.bench.grid.inside import asked_of, pruned_inside
from prunus.bench.grid.supplies import Bench, batches_of, calibration_of, data_of, dense_of, draw_of
from prunus.bench.grid.tickets import CONTROLS, begun, part_of_training, trained_again
from prunus.bench.record import Record
from prunus.budget import Budget
from prunus.calibration.statistics import combined
from prunus.cost import Latency, measure_latency
from prunus.courses import Static
from prunus.engine.prune import prune
from prunus.guarantee import certify
from prunus.parts import NODES
from prunus.presets import recipes
from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.rng import generator_for
from prunus.schedules import Step, steps_of
from prunus.surgery.masked import apply_masks, emitting

__all__ = ["ROLES"]

TIMED = 64  # test samples in a timed batch


def _scores(cell: Cell, model: nn.Module, data: Dataset) -> dict[str, float]:
    found = {n: float(v) for n, v in task(cell.task).evaluate(model, data).items()}
    if (k := cell.settings.top_k) is not None:
        found |= _new(found, {f"top{k}_accuracy": _top_k(model, data, k)})
    return found


def _new(scores: Mapping[str, float], more: Mapping[str, float]) -> Mapping[str, float]:
    """Further scores, none of which may take the place of one that the task gave."""
    for name in more:
        if name in scores:
            raise ValueError(f"The task's `evaluate` gives {name!r}, which is also made here.")
    return more


def _top_k(model: nn.Module, data: Dataset, k: int) -> float:
    right, device = 0, next(model.parameters()).device
    with torch.no_grad():
        for x, y in zip(
            torch.split(data.x_test, 2000), torch.split(data.y_test, 2000), strict=True
        ):
            best = model(x.to(device)).topk(k, dim=1).indices.cpu()
            right += int((best == y[:, None]).any(1).sum())
    return right / len(data.y_test)


def _prune(
    bench: Bench,
    cell: Cell,
    recipe: Recipe,
    target: Target,
    *,
    evaluated: dict[str, float] | None = None,
) -> Pruned:
    """One call of `prune` as the cell says; `evaluated` takes the scores before the last training.

    With None for `evaluated` a schedule that needs no training gets none.
    """
    chosen, data = task(cell.task), data_of(cell.task, bench.data_dir)
    schedule, trains, from_start = schedule_of(cell.schedule)
    method = replace(recipe, schedule=schedule)
    model = (
        fresh_model(chosen, cell.model_seed)
        if from_start
        else dense_of(cell.task, cell.model_seed, bench.data_dir, bench.cache).model
    )
    if cell.settings.device != "cpu":
        model = copy.deepcopy(model).to(cell.settings.device)
    teacher = _teacher(bench, cell)
    if schedule.inside:
        return pruned_inside(chosen, data, cell, model, method, target, teacher)
    source: Any = batches_of(data, cell.settings.calibration, draw_of(cell))
    # A calibration traces for nodes on the device where it was made.
    fits = cell.settings.device == "cpu" or not method.granularity.needs_example
    fits = fits and not method.selection.network  # a search reads the samples themselves
    fits = fits and not method.granularity.needs_batches  # so do scores of blocks and experts
    if fits and not from_start and method.inputs == "dense" and len(steps_of(schedule)) == 1:
        statistics = combined(["gram", *method.statistics])
        source = calibration_of(
            cell.task,
            cell.model_seed,
            bench.data_dir,
            bench.cache,
            cell.settings.calibration,
            draw_of(cell),
            statistics,
        )
    train: Callable[[nn.Module, Step], None] | None = None
    trains = trains and cell.settings.train
    if trains and (evaluated is not None or schedule.trains):
        fit = chosen.train if from_start else chosen.retrain

        def train(model: nn.Module, step: Step) -> None:
            if step.last and evaluated is not None:
                evaluated.update(_scores(cell, model, data))
            generator = generator_for(cell.seed, "retraining", cell.task, step.index)
            part = part_of_training(fit, step.span) | asked_of(fit, cell, teacher)
            fit(model, data, generator=generator, hold=None, progress=False, **part)

    return prune(
        model.eval(),
        method,
        target,
        data=source,
        layers=cell.settings.layers,
        exclude=cell.settings.exclude,
        train=train,
        seed=cell.seed,
        progress=False,
    )


def _teacher(bench: Bench, cell: Cell) -> nn.Module | None:
    """The dense network whose outputs trainings ask for, where they do."""
    if cell.settings.distil is None:
        return None
    dense = dense_of(cell.task, cell.model_seed, bench.data_dir, bench.cache).model
    return copy.deepcopy(dense).to(cell.settings.device)


def _pruned(bench: Bench, cell: Cell, record: Record) -> Record:
    recipe = recipe_of(cell.recipe)
    return _account(bench, cell, record, recipe, budget_of(cell.budget))


def _random_layers(bench: Bench, cell: Cell, record: Record) -> Record:
    """A random mask with the counts of every layer that the recipe chose."""
    recipe = recipe_of(cell.recipe)
    plan = _prune(bench, cell, recipe, budget_of(cell.budget)).plan
    if schedule_of(cell.schedule)[0].inside:
        cell = replace(cell, schedule=repr(Static()))
    base = recipes["random-edge"]
    blind = Recipe(granularity=recipe.granularity, score=base.score, selection=base.selection)
    return _account(bench, cell, record, blind, plan)


def _account(bench: Bench, cell: Cell, record: Record, recipe: Recipe, target: Target) -> Record:
    data = data_of(cell.task, bench.data_dir)
    dense = dense_of(cell.task, cell.model_seed, bench.data_dir, bench.cache)
    _, trains, _ = schedule_of(cell.schedule)
    after: dict[str, float] = {}
    pruned = _prune(bench, cell, recipe, target, evaluated=after)
    final = _scores(cell, pruned.model, data)
    before = dict(dense.metrics)
    if cell.settings.top_k is not None:
        before = _scores(cell, dense.model, data)
    latency = None
    if cell.settings.latency:
        latency = _latency(pruned, data)
    scores = after or final  # inside a training nothing comes before it
    return replace(
        _costs(record, pruned),
        before=before,
        after={**scores, **_new(scores, _rescored(cell, dense.model, pruned, data))},
        retrained=final if trains and cell.settings.train else None,
        layer_error={n: r.error for n, r in pruned.layers.items() if r.error is not None},
        layer_density={n: r.density for n, r in pruned.layers.items()},
        latency=latency,
        certificate=_certificate(cell, dense.model, pruned, data),
        data=pruned.data_fingerprint or "",
        extra={
            **record.extra,
            "masks": _digest(pruned.masks),
            "plan_feasible": pruned.plan.feasible,
            "notes": list(pruned.notes),
            **_compressed(bench, cell, pruned, data),
        },
    )


def _compressed(bench: Bench, cell: Cell, pruned: Pruned, data: Dataset) -> dict[str, Any]:
    if not cell.settings.compress:
        return {}
    ways, chosen = cell.settings.compress, task(cell.task)
    found = compressed_ways(ways, chosen, cell.seed, pruned, data, bench.data_dir)
    return {"compressed": found}


def _ways(cell: Cell, recipe: Recipe) -> list[str]:
    """Those asked for that have a meaning for the recipe's masks."""
    nodes = recipe.granularity.units == NODES
    return [way for way in cell.settings.rescore if way != "emitting" or nodes]


def _rescored(cell: Cell, dense: nn.Module, pruned: Pruned, data: Dataset) -> dict[str, float]:
    """Scores of the dense network under the masks in the other ways that the grid asks for."""
    found: dict[str, float] = {}
    for way in _ways(cell, pruned.recipe):
        if way == "emitting":
            other = emitting(dense, pruned.masks)
        else:
            other = copy.deepcopy(dense)
            apply_masks(other, pruned.masks)
        other = other.to(cell.settings.device)
        found |= {f"{way}_{name}": value for name, value in _scores(cell, other, data).items()}
    return found


def _costs(record: Record, pruned: Pruned) -> Record:
    before, after = pruned.cost_before, pruned.cost_after
    macs = None
    if before.macs is not None and after.macs is not None:
        macs = (before.macs, after.macs)
    return replace(
        record,
        density=after.density,
        density_whole=after.model_density,
        parameters=(before.parameters, after.parameters),
        macs=macs,
        bytes=(before.bytes, after.bytes),
        extra={**record.extra, "compressed_at_most": [before.compressed, after.compressed]},
    )


def _latency(pruned: Pruned, data: Dataset) -> dict[str, Any]:
    timed = pruned.measured(data.x_test[:TIMED])
    before, after = timed.cost_before.latency, timed.cost_after.latency
    assert before is not None  # `measured` sets both
    assert after is not None
    return _timings(before, after, compact=pruned.recipe.granularity.shrinks)


def _timings(dense: Latency, small: Latency, *, compact: bool) -> dict[str, Any]:
    return {"dense": asdict(dense), "pruned": asdict(small), "compact": compact}


def _certificate(
    cell: Cell, dense: nn.Module, pruned: Pruned, data: Dataset
) -> dict[str, Any] | None:
    """What is guaranteed and predicted for the gap to the trained dense network, held out."""
    if cell.settings.certificate is None:
        return None
    samples = data.x_test[: cell.settings.certificate].to(cell.settings.device)
    if cell.settings.device != "cpu":
        dense = copy.deepcopy(dense).to(cell.settings.device)
    with quiet():  # a vacuous bound says so in its statement
        text = certify(dense, pruned, data=samples).to_json()
    found: dict[str, Any] = json.loads(text)
    del found["gaps"]  # one number per sample
    return found


def _small_dense(bench: Bench, cell: Cell, record: Record) -> Record:
    """A dense network of the same shape, thinner, with as many parameters; trained from the start.

    Its widths are those that random node pruning leaves at the same number of parameters.
    """
    chosen: Task = task(cell.task)
    data = data_of(cell.task, bench.data_dir)
    dense = dense_of(cell.task, cell.model_seed, bench.data_dir, bench.cache)
    once = replace(cell, schedule="none")
    masked = _prune(bench, once, recipe_of(cell.recipe), budget_of(cell.budget))
    thin = masked
    if masked.recipe.granularity.units != NODES:
        size = Budget(parameters=masked.cost_after.parameters)
        thin = _prune(bench, once, recipes["random-node"], size)
    model = thin.compact(data.x_test[:8].to(cell.settings.device))
    generator = generator_for(cell.seed, "small dense network", cell.task)

    def begin() -> None:
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    drawing([torch.default_generator], begin, seed=generator.initial_seed())
    begun = generator_for(cell.seed, "training", cell.task)
    chosen.train(model, data, generator=begun, hold=None, progress=False)
    own = _scores(cell, model, data)
    # It has no masks to score otherwise; its own score stands beside those of the others.
    ways = ("", *(f"{way}_" for way in _ways(cell, masked.recipe)))
    after = {f"{way}{name}": value for way in ways for name, value in own.items()}
    retrained = None
    if cell.schedule != "none":
        again = generator_for(cell.seed, "retraining", cell.task, 0)
        more = asked_of(chosen.retrain, cell, _teacher(bench, cell))
        chosen.retrain(model, data, generator=again, hold=None, progress=False, **more)
        retrained = _scores(cell, model, data)
    latency = None
    if cell.settings.latency:
        batch = data.x_test[:TIMED].to(cell.settings.device)
        whole = copy.deepcopy(dense.model).to(cell.settings.device)
        pair = measure_latency([whole, model], lambda m: m(batch), batch=len(batch))
        latency = _timings(*pair, compact=True)
    return replace(
        _costs(record, thin),
        latency=latency,
        before=dict(dense.metrics),
        after=after,
        retrained=retrained,
        data=thin.data_fingerprint or "",
        extra={
            **record.extra,
            "masks": "",
            "parameters_asked": masked.cost_after.parameters,
            "plan_feasible": thin.plan.feasible,
        },
    )


def _digest(masks: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(masks):
        digest.update(f"{name}{tuple(masks[name].shape)}".encode())
        digest.update(masks[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _ticket(bench: Bench, cell: Cell) -> Pruned:
    """A ticket; all its controls, which come one after another, ask for its masks."""
    return _prune(bench, cell, recipe_of(cell.recipe), budget_of(cell.budget))


def _control(bench: Bench, cell: Cell, record: Record) -> Record:
    """A ticket's mask on other weights, or its weights under another mask, trained in full."""
    chosen, data = task(cell.task), data_of(cell.task, bench.data_dir)
    dense = dense_of(cell.task, cell.seed, bench.data_dir, bench.cache)
    schedule, _, _ = schedule_of(cell.schedule)
    early = rewound_to(schedule)
    assert early is not None  # `baselines` names controls nowhere else
    ticket = _ticket(bench, replace(cell, role="prune", label=""))
    model, own = begun(chosen, data, cell.role, early, ticket.masks, cell.seed)
    model = model.to(cell.settings.device)
    after = _scores(cell, model, data)
    more = asked_of(chosen.train, cell, _teacher(bench, cell))
    trained_again(chosen, data, cell.role, model, own, cell.seed, more)
    return replace(
        _costs(record, ticket),  # as many weights in every layer
        before=dict(dense.metrics),
        after=after,
        retrained=_scores(cell, model, data),
        data="",
        extra={**record.extra, "masks": _digest(own), "plan_feasible": True},
    )


ROLES: Mapping[str, Callable[[Bench, Cell, Record], Record]] = {
    "prune": _pruned,
    "random-layers": _random_layers,
    "small-dense": _small_dense,
    **dict.fromkeys(CONTROLS, _control),
}
