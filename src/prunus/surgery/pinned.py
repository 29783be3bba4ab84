"""Dead classes that stay, since the network's code holds to the number of its channels.

Code that writes a width down (`x.view(-1, 400)`), splits by written numbers or picks channels by
their places runs at that width alone. Which groups it holds to shows itself where they are cut.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.coupling import Group
from prunus.surgery.alike import Gone, levelled
from prunus.surgery.dead import dead_units
from prunus.surgery.probe import families, reason_of
from prunus.surgery.verify import CompactionError

__all__ = ["PinnedChannels", "emptied", "loosened", "none_of", "said_of"]


class PinnedChannels(UserWarning):
    """Channels that nothing needs stay, since the network's code holds to their number."""


def none_of(gone: Gone) -> dict[str, Tensor]:
    """No class of any group."""
    return {name: torch.zeros_like(units) for name, units in gone.items()}


def loosened(
    groups: Sequence[Group], gone: Gone, trial: Callable[[Gone], Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Classes that can go together, of those that cannot all go, and why the others stay.

    Groups join one another as long as the trial holds, halves of what failed after each other, so
    that k groups of n that stay cost about 2 k log₂ n trials. Then groups that share a layer, or
    are of one size, are tried in equal numbers, as halves of one `chunk` have to be.

    Args:
        groups: that have lost classes.
        gone: which could go; the trial of all together has failed.
        trial: raises a `CompactionError` where the network without these classes fails or differs.

    Returns:
        what can go, and {group: reason} of those that keep some of theirs.
    """
    going = none_of(gone)
    why: dict[str, str] = {}

    def failure(more: Gone) -> str | None:
        try:
            trial({**going, **more})
        except CompactionError as error:
            return reason_of(str(error))
        return None

    def join(part: Sequence[Group]) -> None:
        reason = failure({g.name: gone[g.name] for g in part})
        if reason is None:
            going.update({g.name: gone[g.name] for g in part})
        elif len(part) == 1:
            why[part[0].name] = reason
        else:
            join(part[: len(part) // 2])
            join(part[len(part) // 2 :])

    losing = [group for group in groups if bool(gone[group.name].any())]
    half = len(losing) // 2  # all of them together are known to fail
    for part in (losing[:half], losing[half:]):
        if part:
            join(part)
    for family in families([g for g in losing if g.name in why]):
        level = levelled(lambda group: None)(family, gone)
        if len(family) > 1 and bool(level[family[0].name].any()) and failure(level) is None:
            going.update(level)
            for name, units in level.items():
                if torch.equal(units, gone[name]):
                    del why[name]
                else:
                    why[name] = "it keeps as many channels as others that the code holds it to"
    return going, why


def emptied(model: nn.Module, groups: Sequence[Group], example: object) -> dict[str, Tensor]:
    """The dead classes of groups that stay whole, where they have some."""
    every = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    found = dead_units(model, tuple(groups), every, example) if groups else []
    return {
        group.name: dead.units
        for group, dead in zip(groups, found, strict=True)
        if bool(dead.units.any())
    }


def said_of(group: Group, stay: Tensor, reason: str) -> str:
    """How many dead classes of a group stay, and why."""
    makers = ", ".join((*group.producers, *group.raw, *group.embeddings))
    return f"{int(stay.sum())} of {group.size} channels of {makers} ({reason})"
