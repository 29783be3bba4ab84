"""`prune`: one recipe, one model, one density."""

import os
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.ambient import plainly, theirs
from prunus.budget import Budget, Density
from prunus.calibration import Calibration
from prunus.calibration.batches import Batches
from prunus.calibration.place import checked_device, device_of
from prunus.calibration.select import check_ready
from prunus.calibration.statistics import names_of
from prunus.check import function, whole
from prunus.courses import not_between
from prunus.engine.answer import answer, warned
from prunus.engine.calibrated import shared_calibration, shares
from prunus.engine.drop import within_drop
from prunus.engine.job import State, job_of
from prunus.engine.judge import example_of, judge_of
from prunus.engine.once import may_wait, pruned_once
from prunus.engine.planned import check_plannable, set_apart
from prunus.engine.runs import numbers_of
from prunus.engine.settled import Settled
from prunus.engine.target import Target, target_of
from prunus.engine.unit import Picked
from prunus.hints import Data, Evaluate, Loss, Metrics
from prunus.joint import is_network
from prunus.modes import copied, owned, private
from prunus.presets import resolve
from prunus.progress import progress_bar
from prunus.recipe import Recipe
from prunus.result import Pruned
from prunus.schedules import Step, steps_of
from prunus.surgery.masked import apply_masks, held
from prunus.threads import sparing

__all__ = ["prune"]


@plainly
@sparing
def prune(
    model: nn.Module,
    recipe: str | Recipe,
    density: Density = None,
    *,
    data: Data | None = None,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    train: Callable[[nn.Module, Step], None] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    blocks: str | None = None,
    keep: str | os.PathLike[str] | None = None,
    memo: MutableMapping[Hashable, Picked] | None = None,
    measure: bool = True,
    threads: int | None = None,
) -> Pruned:
    """Prune a copy of a network by a recipe; the input model is untouched.

    Args:
        model: the network.
        recipe: a name in `prunus.recipes`, or a `Recipe`.
        density: kept / total in (0, 1]; or {glob: density}, a `Budget` or a `Plan`. A recipe with
            N:M granularity fixes it, and takes None. For nodes, {glob: density} is the share of a
            group's classes. `Budget(metric=…, drop=…)` asks for the lowest density at which
            `evaluate` is at most `drop` worse; the plan's notes say how it was found.
        data: batches, or a `Calibration`; where given, layer errors are measured on it.
        layers: names or globs of the layers whose weights (edges) or outputs (nodes) are pruned.
        exclude: names or globs to leave alone.
        loss: a function (output, batch) -> scalar, for recipes that need gradients.
        evaluate: a function model -> float or dict; called before, after pruning and after
            training.
        train: a function (model, step) -> None, called after each pruning step; zeros are held
            against every optimizer while it runs.
        seed: of all random draws.
        device: where statistics and masks are computed; the model's own where None. The pruned
            model comes back on the device of the input model.
        progress: show bars; None shows them on a terminal after two seconds.
        blocks: what is calibrated and pruned together before going on. None: the whole model, or
            each layer for a recipe with inputs="pruned". "auto": the members of the
            `nn.ModuleList` or `nn.Sequential` that run one after another, each a scope, so that
            memory holds the statistics of one of them. A glob of module names: those modules.
        keep: a folder where inputs are kept between scopes, in files that go at the end; in memory
            where None.
        memo: a dict that remembers choices over several calls with the same model and data, so
            that recipes that differ in their compensation alone share their masks' work.
        measure: False leaves layer errors out that the recipe's own statistics do not give. They
            cost a recipe that reads no data (`magnitude`, `l1-filter`) a second forward pass, one
            that reads the data otherwise a Gram matrix of every layer.
        threads: of torch and BLAS while this runs. Where None, one for networks of up to 65536
            parameters without convolutions, for the others what is set. Rows and other small
            systems are solved by one thread whatever is set.

    Returns:
        a `Pruned`.

    Raises:
        ValueError: an unknown recipe or layer, a density outside (0, 1], missing, empty or unfit
            data, NaN or infinite weights, no prunable layers.
    """
    name, method = resolve(recipe)
    if method.schedule.inside:
        raise not_between(f"Recipe {name!r}")
    target = target_of(density, method)
    whole("seed", seed, low=0)
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    check_ready(model)
    function("evaluate", evaluate, "model -> float or dict")
    function("train", train, "(model, step) -> None")
    function("loss", loss, "(output, batch) -> scalar")
    if method.needs_data and data is None:
        wanted = ", ".join(names_of(method.statistics)) or "an example to trace"
        raise ValueError(
            f"Recipe {name!r} needs data ({wanted}), got none. "
            f"Pass data=, batches or a Calibration."
        )
    if method.schedule.trains and train is None:
        raise ValueError(f"{method.schedule!r} trains between its steps. Pass train=.")
    if target.budget is not None and target.budget.drop is not None:
        if evaluate is None:
            raise ValueError(
                "A budget of drop is a limit on what `evaluate` says. Pass evaluate=, a function "
                "model -> float or dict."
            )
        given = data if data is None or isinstance(data, Calibration) else Batches(data)
        if layers is None and exclude is None and blocks is None:  # as statistics are shared
            given = _read_once(model, name, method, target.budget, given, loss, device, progress)

        def to(density: float) -> Pruned:
            return prune(
                model, recipe, density, data=given, layers=layers, exclude=exclude, loss=loss,
                train=train, seed=seed, device=device, progress=False, blocks=blocks, keep=keep,
                memo=memo, measure=measure, threads=threads,
            )  # fmt: skip

        stage = "pruned" if train is None else "trained"
        judge = judge_of(evaluate, model, example_of(given))
        return within_drop(to, model, target.budget, judge, stage=stage, progress=progress)
    if method.basis.needs_batches and isinstance(data, Calibration):
        raise ValueError(
            f"{method.basis!r} changes the network, and a Calibration holds statistics of the one "
            f"that was. Pass batches as data."
        )
    check_plannable(name, method, target.budget, data)
    _check_scopes(name, method, target, blocks)
    source, verifying, fingerprint = set_apart(target.budget, data)
    home = device_of(model)
    where = checked_device(device) if device is not None else home
    train = None if train is None else theirs(train)
    with ExitStack() as stack:
        work = stack.enter_context(owned(copied(model).to(where)))
        if where == home:
            dense = stack.enter_context(private(model))
        else:
            dense = stack.enter_context(owned(copied(model).to(where)))
        if method.basis.needs_batches and not isinstance(source, Calibration):
            source = Batches(source)  # read twice; of an iterator that is refused
        turned = method.basis(dense, source, progress=progress)
        if turned is not dense:
            dense = stack.enter_context(owned(turned))
            work = stack.enter_context(owned(copied(turned)))
        job, notes = job_of(
            dense,
            method,
            name,
            source,
            layers=layers,
            exclude=exclude,
            verifying=verifying,
            loss=loss,
            seed=seed,
            device=where,
            progress=progress,
            memo=memo,
            blocks=blocks,
            keep=None if keep is None else Path(keep),
            measure=measure,
        )
        steps = _steps(name, method)
        state = State(
            target=target,
            planner=method,
            not_pruned=job.not_pruned,
            notes=notes,
            waits=may_wait(job, target, steps),
        )
        end: Settled | None = None
        metrics: dict[str, Metrics] = {}
        if evaluate is not None:
            evaluate = judge_of(evaluate, dense, job.example)
            metrics["before"] = numbers_of(evaluate(model))
        start: dict[str, Tensor] = {}
        if any(step.rewind for step in steps):
            start = _copied(work)

        def again() -> nn.Module:
            return stack.enter_context(owned(copied(dense)))

        with progress_bar(f"pruning by {name}", len(steps), progress=progress) as advance:
            for step in steps:
                if step.budget is not None:
                    state, work, end = pruned_once(job, state, work, step.budget, again)
                    if step.last and method.schedule.before_training:
                        state = warned(job, state, work)
                if step.rewind:
                    end = None
                    _rewind(work, start, state.masks)
                if train is not None and step.train:
                    if evaluate is not None and step.last:
                        metrics["pruned"] = numbers_of(evaluate(work))
                    flags = [(m, m.training) for m in work.modules()]
                    end = None
                    with held(work, state.masks):
                        train(work, step)
                    for module, flag in flags:
                        module.training = flag
                    if evaluate is not None and step.last:
                        metrics["trained"] = numbers_of(evaluate(work))
                if step.snapshot:
                    start = _copied(work)
                advance(1)
        if evaluate is not None and "pruned" not in metrics:
            metrics["pruned"] = numbers_of(evaluate(work))
        if fingerprint is not None:  # of all that planned, not of a part
            state = replace(state, fingerprint=fingerprint.value, rows=fingerprint.rows)
        return answer(job, state, work.to(home), model, metrics, end if where == home else None)


def _read_once(
    model: nn.Module,
    name: str,
    method: Recipe,
    budget: Budget,
    data: Calibration | Batches | None,
    loss: Loss | None,
    device: str | torch.device | None,
    progress: bool | None,
) -> Calibration | Batches | None:
    """The statistics that every try of a search reads, where the recipe lets them be shared."""
    if not isinstance(data, Batches) or not method.statistics or not shares(method, budget):
        return data
    return shared_calibration(model, {name: method}, data, loss, device, progress)


def _check_scopes(name: str, recipe: Recipe, target: Target, blocks: str | None) -> None:
    """Raise a ValueError where a recipe needs all layers' statistics together."""
    if blocks is not None and not isinstance(blocks, str):
        raise TypeError(
            f"`blocks` must be None, 'auto' or a glob of module names, got {type(blocks).__name__}."
        )
    if blocks is None and recipe.inputs == "dense":
        return
    what = f"blocks={blocks!r}" if blocks is not None else "inputs='pruned'"
    if is_network(recipe.selection):
        raise ValueError(
            f"{recipe.selection!r} searches over all layers at once, and {what} prunes one scope "
            f"after another. Leave it out of {name!r}."
        )
    budget = target.budget
    if budget is not None and (budget.gap is not None or recipe.allocation.measures_curves):
        raise ValueError(
            f"A plan from error curves needs the statistics of all layers, and {what} collects "
            f"those of one scope at a time. Leave it out, or give a density."
        )


def _steps(name: str, recipe: Recipe) -> list[Step]:
    """All turns of the schedule, or a ValueError where none of them prunes."""
    steps = steps_of(recipe.schedule)
    if all(step.budget is None for step in steps):
        raise ValueError(
            f"The schedule of {name!r} has no step that prunes: {len(steps)} steps, none with a "
            f"`budget`. Give its last step budget=1."
        )
    return steps


def _copied(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a model as it is now."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def _rewind(model: nn.Module, start: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Every tensor returns to its value at the start; zeros stay zeros."""
    model.load_state_dict(dict(start))
    apply_masks(model, masks)
