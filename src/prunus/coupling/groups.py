"""From the labels of a finished trace to groups of classes with their members."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.coupling.labels import ascending, by_number, distinct, in_order
from prunus.coupling.members import Place
from prunus.coupling.table import Table, table_of
from prunus.coupling.trace import RAW_USES, LabelTrace
from prunus.coupling.types import Coupling, Group, Heads, Slot, layer_of
from prunus.coupling.weights import computed_weight
from prunus.views import holds_width

__all__ = ["UNUSED", "groups_of"]

UNUSED = "no linear or convolution operation uses its weight on the example"


def groups_of(trace: LabelTrace, layers: list[str]) -> Coupling:
    """Gather the members of each class, and the classes of each set of producers.

    Args:
        trace: a trace that has run.
        layers: names of all modules that make or read channels, for the reasons of the refused.
    """
    table = table_of(trace)
    reasons = _reasons(trace, table)
    producers = {name: n for (kind, name), n in table.uses.items() if kind == "producer"}
    makers = {**producers}
    for sort in ("embedding", "maker"):  # where no layer makes them
        own = {name: numbers for (kind, name), numbers in table.uses.items() if kind == sort}
        makers |= {name: numbers for name, numbers in own.items() if name not in makers}
    why: dict[str, str] = {}
    for name, numbers in producers.items():
        said = [reasons[i] for i in numbers.tolist() if i in reasons]
        if said:
            why[name] = said[0]

    fine = torch.ones_like(table.roots, dtype=torch.bool)
    fine[list(reasons)] = False
    first = torch.full_like(table.roots, len(makers))
    for i, numbers in reversed(list(enumerate(makers.values()))):
        first[numbers] = i
    fine &= first < len(makers)
    written = table.marked(trace.labels.tied_down())
    for (sort, name), numbers in table.uses.items():
        if sort in RAW_USES.values() and _writes_widths(trace.book.modules, name):
            written[numbers] = True
    drawn = table.marked(trace.labels.tied_down(drawn=True))
    inexact = table.marked(trace.labels.inexact())
    heads = _Heads(trace)
    headed = torch.isin(table.roots, heads.queries)
    kind = table.kinds(written, drawn, inexact, headed)

    told = list(makers)
    ranked: list[tuple[int, int, Tensor]] = []
    there = fine.nonzero().flatten()
    for _, (members,) in by_number(kind[there], there, order=in_order(kind[there])):
        maker = int(first[members[0]])
        low = table.lowest(_place_of(told[maker], members[0], table))[members]
        order = torch.argsort(low, stable=True)
        order = heads.side_by_side(table.roots[members], order)
        ranked.append((maker, int(low[order[0]]), members[order]))
    ranked.sort(key=lambda found: found[:2])

    where, unit = torch.full_like(table.roots, -1), torch.zeros_like(table.roots)
    for i, (_, _, members) in enumerate(ranked):
        where[members] = i
        unit[members] = torch.arange(len(members))
    slots = _slots(table, where, unit, len(ranked))
    names: dict[str, int] = defaultdict(int)
    groups: list[Group] = []
    for i, (maker, _, members) in enumerate(ranked):
        name = told[maker]
        names[name] += 1
        use = table.uses_of(int(members[0]))
        groups.append(
            Group(
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                size=len(members),
                slots=tuple(slots[i]),
                producers=tuple(name for kind, name in use if kind == "producer"),
                consumers=tuple(name for kind, name in use if kind == "consumer"),
                norms=tuple(name for kind, name in use if kind == "norm"),
                embeddings=tuple(name for kind, name in use if kind == "embedding"),
                raw=tuple(dict.fromkeys(n for kind, n in use if kind in RAW_USES.values())),
                exact=not bool(inexact[members[0]]),
                written=bool(written[members[0]]),
                drawn=bool(drawn[members[0]]),
                heads=heads.kind(table.roots[members]),
                pools=heads.pools(table.roots[members]),
            )
        )
    removable = {producer for group in groups for producer in group.producers}
    modules = trace.book.modules
    tables = {
        linear: f"its weight is the table `{table}` of an embedding, whose rows are no channels"
        for table in trace.book.tied
        if (linear := trace.book.reader(table)) is not None
    }
    refused = {
        name: (computed_weight(modules[name]) if name in modules else None)
        or tables.get(name)
        or trace.refused.get(name)
        or why.get(name)
        or UNUSED
        for name in layers
        if name not in removable
    }
    numbered = where[table.marked(trace.numbers.classes(trace.labels)) & (where >= 0)]
    told_of = range(len(groups)) if trace.numbers.anywhere else distinct(numbered).tolist()
    return Coupling(tuple(groups), refused, frozenset(groups[i].name for i in told_of))


def _writes_widths(modules: Mapping[str, nn.Module], parameter: str) -> bool:
    """Whether torch holds what a raw parameter makes and reads against a number of its own."""
    return holds_width(modules[parameter.rpartition(".")[0]])


class _Heads:
    """Which classes are heads of attention, and which of their keys each query head reads."""

    def __init__(self, trace: LabelTrace) -> None:
        pairs = [(trace.labels.find(q), trace.labels.find(s)) for q, s in trace.attended]
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        every = torch.cat([none, *(q for q, _ in pairs)])
        read = torch.cat([none, *(s for _, s in pairs)])
        self.queries = distinct(every)
        # The first kv head that each query head meets: its keys'.
        order = torch.argsort(every, stable=True)
        first = torch.searchsorted(every[order], self.queries)
        self._read = read[order[first]]

    def _of(self, roots: Tensor) -> Tensor:
        return self._read[torch.searchsorted(self.queries, roots)]

    def kind(self, roots: Tensor) -> Heads | None:
        """What the classes of a group are; None where they are no heads."""
        if not self.queries.numel():
            return None
        if not bool(torch.isin(roots, self.queries).all()):
            return None
        return "kv" if torch.equal(self._of(roots), roots) else "query"

    def pools(self, roots: Tensor) -> int:
        """How many kv heads the query heads of a group read; 1 for anything else."""
        return len(distinct(self._of(roots))) if self.kind(roots) == "query" else 1

    def side_by_side(self, roots: Tensor, order: Tensor) -> Tensor:
        """The order in which query heads of one kv head follow one another."""
        if self.kind(roots) != "query":
            return order
        of = self._of(roots)[order]
        first = torch.stack([(of == read).nonzero().min() for read in of])
        return order[torch.argsort(first, stable=True)]


def _reasons(trace: LabelTrace, table: Table) -> dict[int, str]:
    """Why classes cannot be removed, the first reason of each, by their numbers."""
    reasons: dict[int, str] = {}
    for touched, reason in trace.labels.reasons:
        for i in table.marked(trace.labels.of([touched])).nonzero().flatten().tolist():
            reasons.setdefault(i, reason)
    read = torch.zeros_like(table.roots, dtype=torch.bool)
    for (kind, _), numbers in table.uses.items():
        if kind in ("consumer", "tied"):
            read[numbers] = True
    for (kind, name), numbers in table.uses.items():
        for i in numbers[~read[numbers]].tolist() if kind == RAW_USES["in"] else ():
            reasons.setdefault(i, f"nothing but code that multiplies by `{name}` itself reads it")
    for i in (~read).nonzero().flatten().tolist():
        reasons.setdefault(i, "no linear or convolution layer reads it")
    return reasons


def _place_of(producer: str, number: Tensor, table: Table) -> Place:
    """The place where a producer's weight makes a class."""
    return next(
        place
        for place, (_, numbers) in table.slots.items()
        if layer_of(place[0]) == producer and place[2] == "out" and bool((numbers == number).any())
    )


def _slots(table: Table, where: Tensor, unit: Tensor, groups: int) -> list[list[Slot]]:
    """The members of each group, place by place; by unit, and ascending inside each."""
    found: list[list[Slot]] = [[] for _ in range(groups)]
    if not table.slots or not groups:
        return found
    lengths = torch.tensor([len(numbers) for _, numbers in table.slots.values()])
    place = torch.arange(len(lengths)).repeat_interleave(lengths)
    numbers = torch.cat([numbers for _, numbers in table.slots.values()])
    index = torch.cat([index for index, _ in table.slots.values()])
    owner = where[numbers]
    inside = (owner >= 0).nonzero().flatten()
    if len(inside) < len(owner):
        place, numbers, index, owner = (p[inside] for p in (place, numbers, index, owner))
    units = unit[numbers]
    home = place * groups + owner
    keys = home * table.roots.numel() + units
    order = None if ascending(keys) else in_order(keys)
    places = list(table.slots)
    for number, (own, members) in by_number(home, index, units, order=order):
        parameter, axis, role = places[number // groups]
        slot = Slot(parameter, axis, role, own.clone(), members.clone())
        found[number % groups].append(slot)
    return found
