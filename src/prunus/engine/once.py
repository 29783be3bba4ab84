"""A step that is compared with the compact network after it, in place of a trial before."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from prunus.calibration.batches import to_device
from prunus.engine.groups import sample_of
from prunus.engine.job import Job, State
from prunus.engine.kinds import kind_of
from prunus.engine.settled import Settled
from prunus.engine.step import prune_step
from prunus.engine.target import Target
from prunus.engine.trial import tried_groups, waits
from prunus.parts import NODES
from prunus.schedules import Step

__all__ = ["may_wait", "pruned_once"]

TARGETS = ("density", "parameters", "bytes")  # whose plans are made without cutting anything


def may_wait(job: Job, target: Target, steps: Sequence[Step]) -> bool:
    """Whether the one step that prunes can be made again, should the comparison fail."""
    once = sum(step.budget is not None for step in steps) == 1
    plain = target.budget is None or target.budget.target in TARGETS
    again = job.batches is None or not job.batches.one_shot
    return job.recipe.units == NODES and once and plain and again


def pruned_once(
    job: Job, state: State, work: nn.Module, part: float, again: Callable[[], nn.Module]
) -> tuple[State, nn.Module, Settled | None]:
    """`prune_step`, and what is known of the network then where no trial was made before.

    The comparison says what a trial would where every group loses something and the networks are
    equal. Else the trial is made, and the step again where it leaves a group whole.

    Args:
        job: what is pruned.
        state: before the step.
        work: the network, pruned in place.
        part: see `prune_step`.
        again: () -> the network as it was before the step.

    Returns:
        the state, the network, and what `settled` says of it, where it has been asked.
    """
    after = prune_step(job, state, work, part)
    if not waits(job, state):
        return after, work, None
    end = kind_of(job.recipe).settled(job, after, work)
    if end.equal and _all_lose(after):
        return after, work, end
    small = sample_of(job.dense, to_device(job.example, job.device))
    _, refused, alike = tried_groups(job.dense, after.groups or (), small)
    if not refused and not alike:
        return after, work, end
    work = again()
    return prune_step(job, replace(state, waits=False), work, part), work, None


def _all_lose(state: State) -> bool:
    wide = [group for group in state.groups or () if group.size > group.pools]
    return all(int(state.classes[group.name].sum()) < group.size for group in wide)
