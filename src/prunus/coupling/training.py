"""Layers that read channels in training alone, such as auxiliary classifiers.

The network runs in evaluation mode, where `if self.training` leaves them out; what they read has to
go from them too, or the network that is left fails when it trains again.
"""

from dataclasses import replace

import torch

from prunus.coupling.groups import UNUSED
from prunus.coupling.types import Coupling, Group, Slot

__all__ = ["unused", "with_training"]


def unused(coupling: Coupling) -> set[str]:
    """The layers that the run has not met."""
    return {name for name, why in coupling.refused.items() if why == UNUSED}


def with_training(coupling: Coupling, training: Coupling) -> Coupling:
    """The groups with what reads their classes in training alone.

    Such layers are cut with a group and are none of its consumers: nothing is known of their inputs
    in evaluation mode, so that no score asks.

    Args:
        coupling: of the network in evaluation mode.
        training: of the same network with its containers in training mode, norms and dropout in
            evaluation mode.

    Returns:
        The same groups with further slots; those that training joins to others, or takes where no
        rule follows, are refused.
    """
    alone = unused(coupling) - unused(training)
    if not alone:
        return coupling
    groups, refused = [], dict(coupling.refused)
    for name in alone:
        refused[name] = "it runs in training alone, where nothing is collected; its channels stay"
    for group in coupling.groups:
        found = _followed(group, training, alone)
        if isinstance(found, Group):
            groups.append(found)
        else:
            refused |= {name: found for name in group.producers if name not in refused}
    numbered = {group.name for group in groups} if training.numbered else coupling.numbered
    return Coupling(tuple(groups), refused, frozenset(numbered))


def _followed(group: Group, training: Coupling, alone: set[str]) -> Group | str:
    known = {(s.parameter, s.axis, s.role): s for s in group.slots}
    for other in training.groups:
        more = {(s.parameter, s.axis, s.role): s for s in other.slots}
        if not any(key in more for key in known if key[2] == "out"):
            continue
        alike = other.producers == group.producers and known.keys() <= more.keys()
        if alike and all(_same(s, more[k]) for k, s in known.items()):
            extra = tuple(s for key, s in more.items() if key not in known)
            return replace(
                group,
                slots=(*group.slots, *extra),
                exact=group.exact and other.exact,
                written=group.written or other.written,
                drawn=group.drawn or other.drawn,
            )
        if any(slot.layer in alone for slot in other.slots):
            return f"in training its channels also meet others, by {', '.join(sorted(alone))}"
        return group
    whys = {training.refused.get(name, UNUSED) for name in group.producers} - {UNUSED}
    return f"in training: {sorted(whys)[0]}" if whys else group


def _same(one: Slot, other: Slot) -> bool:
    return torch.equal(one.index, other.index) and torch.equal(one.unit, other.unit)
