"""Dead units that stay, so that widths come out which one configuration for all blocks can say.

A unit that is zero costs what it costs and changes nothing: leaving it is padding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.coupling import Group

__all__ = ["Family", "Gone", "Spare", "by_blocks", "by_sizes", "levelled", "only", "rounded"]

Gone = Mapping[str, Tensor]  # {group: True where a class can go}
# From the groups and what of them can go to what does go.
Spare = Callable[[Sequence[Group], Gone], dict[str, Tensor]]
# What groups have in common that must be alike.
Family = Callable[[Group], Any]


def by_blocks(group: Group) -> Any:
    """The same group in different blocks: names that differ in numbers alone, and one size."""
    parts = tuple("#" if part.isdigit() else part for part in group.name.split("."))
    return parts, group.size


def by_sizes(group: Group) -> Any:
    """Groups of one size, as where encoder and decoder have one field between them."""
    return group.size


def levelled(family: Family, step: Callable[[int], int] = lambda size: 1) -> Spare:
    """Let all groups of a family lose as many classes as the one that can lose fewest.

    Args:
        family: what must be alike.
        step: from the size of a group to what its losses are a multiple of.
    """

    def spare(groups: Sequence[Group], gone: Gone) -> dict[str, Tensor]:
        least: dict[Any, int] = {}
        for group in groups:
            count = int(gone[group.name].sum())
            count -= count % step(group.size)
            least[family(group)] = min(count, least.get(family(group), count))
        return {g.name: _last(gone[g.name], least[family(g)], g.pools) for g in groups}

    return spare


def only(families: Sequence[Any], family: Family, level: Spare) -> Spare:
    """What `level` lets go of the groups of some families; all others stay whole."""

    def spare(groups: Sequence[Group], gone: Gone) -> dict[str, Tensor]:
        going = level(groups, gone)
        return {
            g.name: going[g.name] if family(g) in families else torch.zeros_like(going[g.name])
            for g in groups
        }

    return spare


def rounded(multiple: int) -> Spare:
    """Leave so many dead classes of each group that it keeps a multiple of a number, or all."""

    def spare(groups: Sequence[Group], gone: Gone) -> dict[str, Tensor]:
        going = {}
        for group in groups:
            count = int(gone[group.name].sum())
            count = max(0, count - (count - group.size) % multiple)
            going[group.name] = _last(gone[group.name], count, group.pools)
        return going

    return spare


def _last(units: Tensor, count: int, pools: int) -> Tensor:
    """The last `count` of some classes, the same number of each pool."""
    rows = units.view(pools, -1)
    rank = rows.flip(1).cumsum(1).flip(1)
    return (rows & (rank <= count // pools)).flatten()
