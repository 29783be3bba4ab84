"""What can be cut for real, found by cutting: code may split, or pick channels by number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.coupling import Group
from prunus.hints import Batch
from prunus.modes import twin
from prunus.surgery.cut import cut
from prunus.surgery.verify import CompactionError, Reference, verify_equal

__all__ = ["Cuttable", "cuttable", "families", "narrowed", "reason_of"]

Gone = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Cuttable:
    """What came of cutting groups on trial.

    Attributes:
        groups: those that can lose classes.
        alike: names of groups that must all keep the same number, as halves of one `chunk`.
        refused: {group: reason} of the others.
    """

    groups: tuple[Group, ...]
    alike: tuple[tuple[str, ...], ...]
    refused: Mapping[str, str]


def cuttable(
    model: nn.Module, groups: Sequence[Group], example: Batch, *, rtol: float = 1e-4
) -> Cuttable:
    """Cut classes on trial, and leave those groups whole that do not allow it.

    First all groups lose classes at once, different numbers where one layer makes the channels
    of several groups. Only where the smaller network then fails, or is not equal to the one with
    zeros, each group is tried alone, then groups of one layer or of one size in equal numbers.

    Args:
        model: the dense network; left as it is.
        groups: that may lose classes.
        example: one small batch.
        rtol: as for `compact`.
    """

    def fails(gone: Gone) -> str | None:
        return _failure(model, [g for g in groups if g.name in gone], gone, example, rtol)

    wide = [group for group in groups if group.size > group.pools]
    unequal = _unequal(wide)
    if fails(unequal) is None:
        return Cuttable(tuple(groups), (), {})
    alone = {group.name: fails({group.name: _classes(group, group.size // 2)}) for group in wide}
    free = [group for group in wide if alone[group.name] is None]
    suspects = [group for group in wide if alone[group.name] is not None]
    if free and fails({g.name: unequal[g.name] for g in free}) is not None:
        suspects, free = wide, []  # they disturb one another
    alike: list[tuple[str, ...]] = []
    refused: dict[str, str] = {}
    for family in families(suspects):
        same = family[0].size // 2
        if len(family) > 1 and fails({g.name: _classes(g, same) for g in family}) is None:
            alike.append(tuple(group.name for group in family))
            free += family
            continue
        for group in family:
            reason = alone[group.name]
            if reason is None and fails({group.name: unequal[group.name]}) is None:
                reason = "it cannot be cut together with others"
            refused[group.name] = reason_of(reason or "")
    together = {
        group.name: _classes(group, group.size // 2 if _in(group, alike) else _count(group))
        for group in free
    }
    final = fails(together) if free else None
    if final is not None:
        refused.update({group.name: reason_of(final) for group in free})
        free, alike = [], []
    kept = {group.name for group in free} | {group.name for group in groups if group not in wide}
    return Cuttable(tuple(g for g in groups if g.name in kept), tuple(alike), refused)


def _in(group: Group, alike: Sequence[tuple[str, ...]]) -> bool:
    return any(group.name in names for names in alike)


def _count(group: Group) -> int:
    return max(1, group.size // 2)


def _classes(group: Group, count: int) -> Tensor:
    """So many classes, spread over the group; at least one of each pool, never all."""
    return group.spread(max(group.pools, min(count, group.size - group.pools)))


def _unequal(groups: Sequence[Group]) -> Gone:
    """Numbers of classes that differ between groups made by one layer, and between neighbours."""
    gone, place = {}, dict[str, int]()
    for order, group in enumerate(groups):
        makers = (*group.producers, *group.raw)
        turn = max((place.get(name, 0) for name in makers), default=0)
        place.update(dict.fromkeys(makers, turn + 1))
        gone[group.name] = _classes(group, group.size // 2 - turn - order % 2)
    return gone


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of equal size: first those that share a layer, then the rest together."""
    found: list[list[Group]] = []
    for group in groups:
        home = next(
            (
                f
                for f in found
                if f[0].size == group.size
                and {n for g in f for n in g.producers} & set(group.producers)
            ),
            None,
        )
        found.append([group]) if home is None else home.append(group)
    lone = [family[0] for family in found if len(family) == 1]
    sizes = dict.fromkeys(group.size for group in lone)
    return [family for family in found if len(family) > 1] + [
        [group for group in lone if group.size == size] for size in sizes
    ]


def _failure(
    model: nn.Module, groups: Sequence[Group], gone: Gone, example: Batch, rtol: float
) -> str | None:
    """Why the network without these classes fails or differs from the one with zeros, or None."""
    masked = _masked(model, groups, gone)
    small = twin(masked)  # thrown away, as the masked one is: they share what is not cut
    reference = Reference(masked, example)
    try:
        left = cut(small, groups, gone, example, reference=reference)
        verify_equal(
            masked,
            small,
            example,
            kept=left.kept,
            rtol=rtol,
            statistics=left.statistics,
            reference=reference,
            got=left.gave,
        )
    except CompactionError as error:
        return str(error)
    return None


def narrowed(model: nn.Module, groups: Sequence[Group], gone: Gone, example: Batch) -> nn.Module:
    """The model without these classes, not compared with anything; it shares what is not cut."""
    small = _masked(model, groups, gone)
    cut(small, groups, gone, example)
    return small


def _masked(model: nn.Module, groups: Sequence[Group], gone: Gone) -> nn.Module:
    """A twin in which all members of these classes are zero; it shares what has none."""
    masked = twin(model)
    learned = dict(masked.named_parameters(remove_duplicate=False))
    own: set[int] = set()
    with torch.no_grad():
        for group in groups:
            for slot in group.slots:
                tensor = learned.get(slot.parameter)
                index = slot.index[gone[group.name][slot.unit]]
                if tensor is None or not len(index):  # running statistics stay, as when pruned
                    continue
                if id(tensor) not in own:
                    tensor.data = tensor.data.clone()
                    own.add(id(tensor))
                tensor.index_fill_(slot.axis, index.to(tensor.device), 0)
    return masked


def reason_of(error: str) -> str:
    """The cause alone, without the advice that follows."""
    first = error.split(" A width is")[0].split(" The forward code")[0]
    first = first.split(" Exclude the layers")[0].rstrip(".")
    return f"it cannot be made narrower: {first[:1].lower()}{first[1:]}"
