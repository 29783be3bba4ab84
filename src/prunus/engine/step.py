"""One step of a pruning: statistics, plan, choice, new values, for any unit."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunus.allocation import Pools
from prunus.allocation.rules import counts_in_plan
from prunus.budget import RESOURCES, Plan
from prunus.compensation import NoCompensation
from prunus.engine.checked import exact, moved
from prunus.engine.errors import measure_errors, seen_whole
from prunus.engine.job import Job, State
from prunus.engine.kinds import kind_of, unit_of
from prunus.engine.scoped import by_scopes, first_found, pools_by_scopes
from prunus.engine.statistics import (
    Found,
    Wanted,
    bare_layers,
    measurable,
    statistics,
    with_weights,
)
from prunus.engine.target import Target
from prunus.engine.unit import Choices, Kept, Layers, Unit
from prunus.engine.write import write
from prunus.guarantee.family import Family
from prunus.guarantee.plan import measured_curves, plan_family
from prunus.joint import is_network
from prunus.modes import copied
from prunus.recipe import Recipe
from prunus.surgery.masked import apply_masks
from prunus.surgery.removals import mark
from prunus.views import Unclear

__all__ = ["counts_for", "levelled", "prune_step"]


def prune_step(job: Job, state: State, work: nn.Module, part: float) -> State:
    """Prune `work`, in place, the share `part` of the way.

    Raises:
        ValueError: a later step needs statistics that a finished calibration cannot give.
    """
    if state.steps and job.calibration is not None and job.recipe.statistics:
        raise ValueError(
            "A schedule of several steps collects statistics anew at each, which a finished "
            "Calibration cannot. Pass batches as data."
        )
    # Before training, weights stay as they are until the last of several rounds, which is
    # measured and compensated against the dense network.
    early = job.recipe.schedule.before_training and part < 1
    recipe = job.recipe
    if early and recipe.compensation != NoCompensation():
        recipe = replace(recipe, compensation=NoCompensation())
    unit = unit_of(job, recipe, state, work)
    state = state.left(unit.refused)
    step = _by_scopes if job.recipe.inputs == "pruned" or job.blocks is not None else _at_once
    state = step(job, state, work, unit, part, early=early)
    mark(work, recipe.granularity, state.masks)
    return replace(state, steps=state.steps + 1)


def _at_once(
    job: Job, state: State, work: nn.Module, unit: Unit, part: float, *, early: bool
) -> State:
    """All layers from statistics of the network as it is before the step."""
    notes: tuple[str, ...] = ()
    wanted: Wanted = job.recipe.statistics
    later = not early and _measured_later(job, work, unit)
    if state.aims is not None and not job.recipe.allocation.measures_curves:
        wanted = job.recipe.deciding  # values and errors are read off what the first round saw
    elif not early and not later and job.measure and job.batches is not None:
        wanted, notes = measurable(bare_layers(work, unit.layers), wanted)
    try:
        found = statistics(job, work, unit.layers, wanted, again=bool(state.steps))
    except Unclear as reason:  # what only measures must not stop a recipe that needs no statistics
        if job.recipe.statistics:
            raise
        found = Found(layers=bare_layers(work, unit.layers))
        notes = (f"layer errors were not measured: {reason}",)
    unit = unit.among(found.layers)
    state = _seen(state, found, *notes).left(unit.refused)
    targets = layers = seen = found.layers
    if job.recipe.schedule.before_training and not early and state.steps:
        targets = seen = statistics(job, job.dense, unit.layers, wanted, again=False).layers
    if job.recipe.schedule.renews:  # chosen by the network as it is, new values for the dense one
        state = _aimed(job, state, layers)
        targets = {name: state.aims[name] for name in layers} if state.aims else layers
    pools = unit.pools(layers)
    family = kind_of(job.recipe).family
    if family is not None:
        state = _planned_ahead(job, state, lambda: family(unit, layers, pools))
    state, kept = counts_for(state, unit, found.layers, pools, part)
    state, searched = _network_choices(job, state, work, targets, kept)
    choices = searched or {
        key: unit.choose(key, seen, pools[key], kept[key], remembered=not state.steps)
        for key in unit.due(sorted(unit.layers, key=job.position))
    }
    before = work
    if later:  # errors are those of the network as it was; the dense one is at hand
        before = copied(work) if state.steps else job.dense
    masks, results = write(work, unit, targets, choices)
    apply_masks(work, {path: m for path, m in state.masks.items() if path not in masks})
    if later:
        try:
            done = measure_errors(job, before, results, measure=job.measure)
            results = done.results
            state = replace(state, fingerprint=done.fingerprint, rows=done.rows)
        except Unclear as reason:
            state = state.noted(f"layer errors were not measured: {reason}")
    return replace(
        state,
        masks={**state.masks, **masks},
        classes=unit.classes(choices),
        results={**state.results, **results},
        cost_before=unit.cost_before,
        groups=unit.cut,
    )


def _measured_later(job: Job, work: nn.Module, unit: Unit) -> bool:
    """True where layer errors take a pass of their own: no statistic has read the data before.

    A Gram matrix of every layer costs far more than the network itself, only to be read once.
    """
    recipe = job.recipe
    if job.batches is None or recipe.statistics:
        return False
    if recipe.schedule.before_training or recipe.schedule.renews:  # these aim at other outputs
        return False
    return seen_whole(job, work, unit.layers)


def _aimed(job: Job, state: State, layers: Layers) -> State:
    """With the dense network's layers, which the first round has seen."""
    if state.aims is not None:
        return state
    # The working network's weights change under its layers.
    return replace(state, aims=with_weights(layers, job.dense))


def _network_choices(
    job: Job, state: State, work: nn.Module, layers: Layers, kept: Kept
) -> tuple[State, Choices]:
    """What a joint method finds that searches over all layers at once; nothing for all others.

    The plan follows a method that moves counts between layers.
    """
    rule = job.recipe.selection
    if not is_network(rule):
        return state, {}
    assert job.batches is not None  # the recipe says that it needs data
    searched = copied(work)
    found = rule(
        searched,
        layers,
        kept,
        job.batches,
        loss=job.loss,
        granularity=job.recipe.granularity,
        seed=job.seed,
        progress=job.progress,
    )
    if set(found) != set(kept):
        raise ValueError(
            f"{rule!r} must answer for the layers {sorted(kept)}, got {sorted(found)}."
        )
    with torch.no_grad():  # such as the statistics of norms under the new weights
        for mine, theirs in zip(work.buffers(), searched.buffers(), strict=True):
            mine.copy_(theirs)
    if rule.moves:
        assert state.plan is not None  # made before the choice
        plan, kept = moved(state.plan, layers, found, job.recipe.granularity, kept)
        state = replace(state, plan=plan)
    return state, {
        name: exact(layers[name], found[name], job.recipe.granularity, kept[name]) for name in kept
    }


def _by_scopes(
    job: Job, state: State, work: nn.Module, unit: Unit, part: float, *, early: bool
) -> State:
    """Scope by scope, each from statistics of its own inputs."""
    reads = state.target.budget is not None and _reads_scores(state.planner)
    found, calls, parts = first_found(job, work, unit, reads=reads)
    unit = unit.among(found.layers)
    state = _seen(state, found).left(unit.refused)
    if not reads:
        pools = unit.blank(found.layers)
    elif job.blocks is None:
        pools = unit.pools(found.layers)
    else:
        pools = pools_by_scopes(job, work, unit, found.layers, calls, parts)
    state, kept = counts_for(state, unit, found.layers, pools, part)
    wanted: Wanted = job.recipe.statistics
    if not early and job.measure:
        wanted, notes = measurable(found.layers, wanted)
        state = state.noted(*notes)
    done = by_scopes(job, work, unit, found.layers, kept, wanted, calls, parts)
    masks = {**state.masks, **done.masks}
    apply_masks(work, masks)
    return replace(
        state.noted(*done.notes),
        masks=masks,
        classes=done.classes,
        results={**state.results, **done.results},
        cost_before=unit.cost_before,
        groups=unit.cut,
    )


def _planned_ahead(job: Job, state: State, networks: Callable[[], Family]) -> State:
    """Turn a gap budget into a plan; measure the error curves that `Planned()` lacks."""
    budget, allocation = state.target.budget, job.recipe.allocation
    if budget is not None and budget.gap is not None:
        found = plan_family(
            job.dense,
            networks(),
            budget.gap,
            kind=budget.kind,
            delta=budget.delta,
            data=job.batches,
            verify=job.verifying,
        )
        return replace(state, target=Target(plan=found))
    if budget is not None and allocation.measures_curves:
        curves = measured_curves(job.dense, networks(), job.batches)
        return replace(
            state,
            planner=replace(job.recipe, allocation=allocation.measured(curves)),
        )
    return state


def counts_for(
    state: State, unit: Unit, layers: Layers, pools: Pools, part: float
) -> tuple[State, Kept]:
    """Whole numbers for this step."""
    dense: dict[str, float] = {}
    cost = unit.cost(layers)
    budget = state.target.budget
    if part < 1 and budget is not None and budget.target in RESOURCES:
        full = {name: torch.full((s.shape[0],), s.shape[1]) for name, s in pools.items()}
        whole = cost(full)
        dense = {
            key: float(value)
            for key in ("parameters", "macs", "bytes")
            if (value := getattr(whole, key)) is not None
        }
        if state.plan is None:  # the last step's limit, before the first one's network is trained
            _refuse(state.target.plan_for(pools, cost, state.planner, 1.0, dense)[0])
    plan, kept = state.target.plan_for(pools, cost, state.planner, part, dense)
    _refuse(plan)
    plan, kept = _nested(plan, kept, unit.left(layers))
    plan, level = levelled(unit, plan, kept)
    return replace(state, plan=plan), level


def _refuse(plan: Plan) -> None:
    """Raise a ValueError for a budget of the whole network that the plan does not meet."""
    if not plan.feasible and plan.kind in RESOURCES:
        raise ValueError(
            f"No plan meets the budget of {plan.kind}: with the least that every pool keeps, the "
            f"network has {plan.value:.4g} and {plan.limit:.4g} was asked for. Ask for more, "
            f"prune further layers, or let an allocation keep fewer (`minimum`)."
        )


def _nested(plan: Plan, kept: Kept, left: Kept) -> tuple[Plan, dict[str, Tensor]]:
    """A plan and its counts, of units that earlier steps left.

    What has gone costs nothing, so that a plan of a step that may spend more would take it back.
    """
    fewer = {key: torch.minimum(k, left[key]) for key, k in kept.items() if key in left}
    fewer = {key: k for key, k in fewer.items() if not torch.equal(k, kept[key])}
    return replace(plan, kept={**plan.kept, **counts_in_plan(fewer)}), {**kept, **fewer}


def levelled(unit: Unit, plan: Plan, kept: Kept) -> tuple[Plan, Kept]:
    """A plan and its counts, made alike where pools must be."""
    level = unit.level(kept)
    moved = {key: int(k.sum()) for key, k in level.items() if not torch.equal(k, kept[key])}
    return replace(plan, kept={**plan.kept, **moved}), level


def _seen(state: State, found: Found, *notes: str) -> State:
    """With what the pass over the data has told."""
    state = state.left(found.never_ran).noted(*notes, *found.notes)
    if found.fingerprint is None:
        return state
    return replace(state, fingerprint=found.fingerprint, rows=found.rows)


def _reads_scores(recipe: Recipe) -> bool:
    """True where the counts depend on the scores, not on the pools' sizes alone."""
    return recipe.allocation.reads_scores and recipe.granularity.fixed is None
