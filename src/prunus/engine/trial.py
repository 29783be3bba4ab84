"""Whether groups can be cut: tried before anything is chosen, or seen in what comes out."""

from collections.abc import Sequence

from torch import nn

from prunus.calibration.reasons import listed
from prunus.coupling import Group
from prunus.engine.job import Job, State
from prunus.hints import Batch
from prunus.surgery.probe import cuttable

__all__ = ["tried_groups", "waits"]


def waits(job: Job, state: State) -> bool:
    """Whether the trial may wait for the comparison of the pruned network with the compact one.

    A trial cuts all groups in other numbers than the plan will. Where the model's code holds no
    number that its channels meet, nothing could come of it but what that comparison shows.
    """
    return state.waits and not job.coupling.numbered


def tried_groups(
    model: nn.Module, groups: Sequence[Group], example: Batch, *, level: bool = True
) -> tuple[tuple[Group, ...], dict[str, str], tuple[tuple[str, ...], ...]]:
    """Groups that can lose classes for real, {layer: reason} of others, and groups to keep alike.

    Args:
        model: the dense network.
        groups: that should be able to.
        example: one batch, on the network's device.
        level: whether groups may be kept alike; False leaves such groups whole.

    Raises:
        ValueError: none can.
    """
    tried = cuttable(model, groups, example)
    refused = dict(tried.refused)
    alike = tried.alike if level else ()
    for group in () if level else tried.groups:
        if group.pools > 1:
            refused[group.name] = "its query heads must stay equally many for each kv head, which "
            refused[group.name] += "a gap budget does not plan"
    for names in () if level else tried.alike:
        said = f"{', '.join(names)} must keep equal numbers, which a gap budget does not plan"
        refused.update(dict.fromkeys(names, said))
    left = tuple(group for group in tried.groups if group.name not in refused)
    layers = {
        n: refused[g.name] for g in groups if g.name in refused for n in (*g.producers, *g.raw)
    }
    if not left:
        raise ValueError(f"The model has no nodes that can be cut out of it ({listed(layers)}).")
    return left, layers, alike
