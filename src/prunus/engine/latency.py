"""What a plan for nodes costs in time: the latency of the compact network that it leaves."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from prunus.calibration.batches import call, size_of
from prunus.cost import measure_latency
from prunus.coupling import Group
from prunus.hints import Batch
from prunus.modes import copied
from prunus.nodes import parameter_masks
from prunus.surgery.compact import compact_groups
from prunus.surgery.masked import apply_masks

__all__ = ["latency_share"]


def latency_share(
    dense: nn.Module, groups: Sequence[Group], batch: Batch
) -> Callable[[Mapping[str, int]], float]:
    """A function from classes kept by group to the compact network's latency, as a share of dense.

    Which classes are kept makes no difference to it; each plan is measured once.

    Args:
        dense: the network.
        groups: all groups that may lose classes.
        batch: the input whose latency counts, on the network's device.
    """
    shapes = {name: tuple(p.shape) for name, p in dense.named_parameters()}
    found: dict[tuple[int, ...], float] = {}

    def share(counts: Mapping[str, int]) -> float:
        key = tuple(counts.values())
        if key not in found:
            smaller = copied(dense)
            for group in groups:
                each = group.size // group.pools
                kept = torch.arange(each).repeat(group.pools) < counts[group.name] // group.pools
                apply_masks(smaller, parameter_masks(group, kept, shapes))
            small = compact_groups(smaller, groups, batch, inexact=True, pinning=True).model
            pair = measure_latency(
                [dense, small], lambda m: call(m, batch), batch=size_of(batch) or 1
            )
            found[key] = pair[1].median / pair[0].median
        return found[key]

    return share
