"""Which channel classes of a network can lose some, with what their plans need."""

from torch import nn

from prunus.calibration.batches import to_device
from prunus.engine.groups import (
    ALONE,
    full_of,
    in_all_blocks,
    living,
    products_of,
    sample_of,
    selected_groups,
)
from prunus.engine.job import Job, State
from prunus.engine.latency import latency_share
from prunus.engine.nodes import NodeUnit
from prunus.engine.trial import tried_groups, waits
from prunus.recipe import Recipe

__all__ = ["node_unit"]


def node_unit(job: Job, recipe: Recipe, state: State, work: nn.Module) -> NodeUnit:
    """The groups of channels that the recipe may cut.

    Raises:
        ValueError: there are none, or a gap budget beside `alike`.
    """
    budget = state.target.budget
    small = sample_of(job.dense, to_device(job.example, job.device))
    groups, refused = selected_groups(
        job.dense,
        job.weights,
        job.coupling,
        job.names,
        inexact=recipe.granularity.inexact,
        others=job.not_pruned,
        tables=job.tables,
    )
    alike: tuple[tuple[str, ...], ...] = ()
    if not waits(job, state):
        level = budget is None or budget.gap is None
        groups, more, alike = tried_groups(job.dense, groups, small, level=level)
        refused = {**refused, **more}
    if recipe.granularity.alike is not None:
        if budget is not None and budget.gap is not None:
            raise ValueError(
                "A gap budget plans each group by itself, so that `alike` must be None, got "
                f"{recipe.granularity.alike!r}. Use a density or another budget."
            )
        alike = in_all_blocks(groups, alike)
    step = recipe.granularity.multiple_of
    for group in groups:
        why = None
        if group.size <= group.pools:
            why = ALONE
        elif step > 1 and group.size // group.pools <= step:
            why = f"multiple_of={step} leaves no smaller number than all {group.size}"
        if why is not None:
            refused = {**dict.fromkeys(group.producers, why), **refused}
    latency = None
    if budget is not None and budget.target == "latency":
        latency = latency_share(job.dense, groups, to_device(budget.example, job.device))
    return NodeUnit(
        job=job,
        recipe=recipe,
        groups={group.name: group for group in groups},
        before=state.classes,
        refused=refused,
        alike=alike,
        alive=living(work, groups, small, filled=() if state.steps else full_of(job.sizes)),
        parameters=dict(work.named_parameters()),
        buffers={name for name, _ in work.named_buffers(remove_duplicate=False)},
        latency=latency,
        # Only a budget of multiply-adds spends them; everything else is counted at the end.
        products=products_of(job.dense, groups, job.sizes, small)
        if budget is not None and budget.target == "macs"
        else {},
        found=None if job.calibration is None else job.calibration.found(recipe.granularity.heads),
    )
