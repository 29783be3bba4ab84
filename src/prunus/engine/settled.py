"""What a pruned network costs, counted on the network itself and not on its plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunus.calibration.batches import size_of, to_device
from prunus.calibration.place import device_of
from prunus.cost import (
    Anatomy,
    Cost,
    Operations,
    anatomy,
    count_operations,
    node_cost,
    smaller_cost,
    sparse_cost,
)
from prunus.engine.job import Job, State
from prunus.hints import Batch
from prunus.ranking import count_true
from prunus.surgery.compact import CompactionError, compact_groups
from prunus.surgery.proof import Proof, proof_of
from prunus.surgery.readings import run

__all__ = ["Settled", "settled"]

RTOL = 1e-4  # what `compact` accepts where it is not told otherwise


@dataclass(frozen=True, eq=False)
class Settled:
    """What is known of a pruned network at the end.

    Attributes:
        cost: of it; for nodes, of the compact one.
        said: what is to be said of it.
        proved: the compact one, where it is remembered that both are equal.
        equal: False where no compact network could be made, or one that keeps removed channels.
    """

    cost: Cost
    said: tuple[str, ...] = ()
    proved: Proof | None = None
    equal: bool = True


def settled(job: Job, state: State, work: nn.Module) -> Settled:
    """The cost of a network with zeros in single weights, or in whole classes of channels.

    Args:
        job: what was pruned.
        state: after the last step.
        work: the network with its zeros.
    """
    sizes, names, groups = job.sizes, tuple(state.results), state.groups
    said: tuple[str, ...] = ()
    if sizes.operations is not None and sizes.operations.missing:
        said = (
            f"multiply-adds leave out {', '.join(sizes.operations.missing)}, for which there is "
            f"no formula",
        )
    if groups is None:
        own = replace(anatomy(work), operations=sizes.operations)
        before = _zeros_before(sizes, own, names, state.masks)
        return Settled(sparse_cost(own, names, state.masks), (*said, *before))
    batch = to_device(job.example, device_of(work))
    operations: Operations | None = None

    def counting(small: nn.Module, batch: Batch) -> object:
        nonlocal operations
        outputs: list[object] = []

        def once() -> int:
            outputs.append(run(small, batch))
            return size_of(batch) or 1

        operations = count_operations(small, once)
        return outputs[0]

    try:
        inexact = job.recipe.granularity.inexact
        found = compact_groups(
            work, groups, batch, rtol=RTOL, inexact=inexact, running=counting, pinning=True
        )
    except CompactionError as error:
        # The work that led here, maybe hours of training, is not thrown away.
        counts = {group.name: int(state.classes[group.name].sum()) for group in groups}
        why = "the costs are those of the plan, for the compact network could not be made"
        cost = node_cost(sizes, groups, counts)
        return Settled(cost, (*said, f"{why}: {error}"), equal=False)
    own = replace(anatomy(found.model, count=False), operations=operations)
    shapes = {name: own.shapes[own.home(name)] for name in sizes.shapes}
    cost = smaller_cost(sizes, shapes, names)
    counted = smaller_cost(own, own.shapes, names)
    if found.change is not None:
        said = (
            *said,
            f"inexact: channels under a norm were cut and its statistics changed; on the "
            f"example the compact network's outputs differ from the masked one's by "
            f"{found.change:.3g} of their norm",
        )
    if found.pinned:
        stay = "; ".join(found.pinned.values())
        said = (*said, f"the compact network keeps removed channels, which its costs count: {stay}")
    share = counted.parameters / _entries(sizes)
    cost = replace(counted, density=cost.density, model_density=share)
    if found.pinned:  # `compact` finds it anew, and says so
        return Settled(cost, said, equal=False)
    proved = proof_of(
        work, found.model, batch, found.gave, rtol=RTOL, inexact=inexact, said=found.said
    )
    return Settled(cost, said, proved)


def _entries(sizes: Anatomy) -> int:
    return sum(torch.Size(sizes.shapes[name]).numel() for name in sizes.parameters)


def _zeros_before(
    sizes: Anatomy, own: Anatomy, names: Sequence[str], masks: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """What is said where weights were zero before."""
    before = sum(sizes.weight_entries([name]) - sizes.filled_of(name) for name in names)
    if not before:
        return ()
    paths = {own.weight_of(name) for name in names}
    kept = sum(count_true(mask) for key, mask in masks.items() if own.home(key) in paths)
    idle = max(0, kept - sum(own.filled_of(name) for name in names))
    return (
        f"{before} weights of the pruned layers were zero before; they count as removed and are "
        f"removed first"
        + (f"; the density asked for leaves {idle} of them unmasked" if idle else ""),
    )
