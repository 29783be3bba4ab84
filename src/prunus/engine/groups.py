"""Groups of channel classes that can lose some, and what so many classes cost."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from prunus.calibration.batches import call, first_of, size_of
from prunus.calibration.reasons import listed
from prunus.cost import Anatomy, Cost, NodePrices, count_operations
from prunus.coupling import Coupling, Group
from prunus.hints import Arguments, Batch
from prunus.modes import evaluating
from prunus.shapes import by_shapes
from prunus.surgery.cut import why_whole
from prunus.surgery.dead import dead_units
from prunus.surgery.probe import narrowed
from prunus.surgery.readings import run as run_on
from prunus.weights import Weight, weight_at

__all__ = [
    "ALONE",
    "NodeCost",
    "full_of",
    "in_all_blocks",
    "living",
    "none_left",
    "products_of",
    "sample_of",
    "selected_groups",
]


ALONE = "all its channels go together, and some must stay"


@dataclass(frozen=True, eq=False)
class NodeCost:
    """The exact cost of so many kept classes per group.

    Attributes:
        sizes: of the network.
        groups: that may lose classes.
        multiple_of: see `Node`.
        nodes: yes.
        latency: share of the dense latency for such counts, where a budget needs it.
        refused: layers without classes that can go, with the reasons.
        alike: names of groups that must keep equal numbers.
        alive: classes of each group that are not dead already; all where it says nothing.
        products: multiply-adds between computed values that go with each class of a group, as an
            attention head's scores do; none where it says nothing.
    """

    sizes: Anatomy
    groups: Sequence[Group]
    multiple_of: int = 1
    nodes: bool = True
    latency: Callable[[Mapping[str, int]], float] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    alike: Sequence[tuple[str, ...]] = ()
    alive: Mapping[str, int] = field(default_factory=dict)
    products: Mapping[str, float] = field(default_factory=dict)

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]:
        """The layers whose channels each group holds."""
        return {group.name: group.producers for group in self.groups}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Empty: the shares that depend on weights' shapes are those of edges."""
        return {}

    @cached_property
    def prices(self) -> NodePrices:
        """Of any counts of classes."""
        return NodePrices.of(self.sizes, self.groups)

    def level(self, kept: Mapping[str, Int[Tensor, " pools"]]) -> dict[str, Int[Tensor, " pools"]]:
        """Counts in which groups that must be alike keep what the least of them does."""
        found = {
            name: counts if counts.numel() == 1 else counts.amin().expand_as(counts)
            for name, counts in kept.items()
        }
        for names in self.alike:
            least = torch.stack([found[name].amin() for name in names]).amin()
            found.update({name: least.expand_as(found[name]) for name in names})
        return found

    def __call__(self, kept: Mapping[str, Int[Tensor, " pools"]]) -> Cost:
        """The compact network's cost; its latency share is measured where a budget needs it."""
        counts = {name: int(k.sum()) for name, k in self.level(kept).items()}
        counts = {name: min(k, self.alive.get(name, k)) for name, k in counts.items()}
        cost = self.prices(counts)
        if cost.macs is not None and self.products:
            gone = {g.name: g.size - max(1, counts[g.name]) for g in self.groups}
            saved = sum(self.products.get(name, 0.0) * n for name, n in gone.items())
            cost = replace(cost, macs=round(cost.macs - saved))
        if self.latency is None:
            return cost
        return replace(cost, latency_share=self.latency(counts))


def selected_groups(
    model: nn.Module,
    weights: Mapping[str, Weight],
    coupling: Coupling,
    selected: Sequence[str],
    *,
    inexact: bool,
    others: Mapping[str, str] | None = None,
    tables: Collection[str] = (),
) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Groups that can be cut, all of whose producers are selected; {layer: reason} of others.

    What `compact` would keep is no unit: it is neither planned nor priced. A consumer that is
    pruned on request alone stays whole unless it is selected.

    Raises:
        ValueError: there are none; the reasons of the `others`, which are not selected, stand with
            those of the selected layers.
    """
    groups = []
    asked_for = {name for name, weight in weights.items() if weight.source.on_request}
    refused = {name: why for name, why in coupling.refused.items() if name in selected}
    for group in coupling.groups:
        outside = [name for name in group.producers if name not in selected]
        whole = [name for name in group.consumers if name in asked_for and name not in selected]
        streams = [n for n in group.embeddings if n not in tables and group.heads is None]
        unasked = [n for n in group.raw if n not in tables and n not in selected]
        if outside:
            reason: str | None = f"shares its channels with {', '.join(outside)}, not selected"
        elif streams:
            reason = (
                f"shares its channels with the embedding {', '.join(streams)}, pruned only where "
                f"`layers` names it, as layers='*' does"
            )
        elif unasked:
            reason = (
                f"shares its channels with {', '.join(unasked)}, which code multiplies by without "
                f"a layer; pruned only where `layers` names it, as layers='*' does"
            )
        elif blind := _without_view(model, weights, (*group.producers, *group.consumers)):
            reason = blind
        elif whole:
            reason = f"is read by {', '.join(whole)}, pruned only where `layers` names it"
        else:
            reason = why_whole(model, group, inexact=inexact)
        if reason is None:
            groups.append(group)
        else:
            named = {*group.producers, *group.raw}.intersection((*selected, *tables))
            refused.update(dict.fromkeys(sorted(named), reason))
    if all(
        g.size == 1 and any(len(s.index) > 1 for s in g.slots if s.role == "out") for g in groups
    ):  # of a layer of width one, the only channel is kept
        refused.update({n: ALONE for g in groups for n in g.producers if n in selected})
        groups = []
    cut = {name for group in groups for name in group.producers}
    for name in selected:
        if name not in cut and name not in refused:
            refused[name] = "its units are no channels that a trace of the model finds"
    if not groups:
        raise none_left({**refused, **(others or {})})
    return tuple(groups), refused


def _without_view(
    model: nn.Module, weights: Mapping[str, Weight], names: Sequence[str]
) -> str | None:
    """Why a group stays whose channels meet a layer that no view knows: no score reads it."""
    for name in names:
        try:
            weights.get(name) or weight_at(model, name)
        except ValueError as error:
            return f"its channels meet a layer that cannot be scored: {error}".rstrip(".")
    return None


def none_left(refused: Mapping[str, str]) -> ValueError:
    """The error of a network without a group that a recipe can prune."""
    return ValueError(
        f"The model has no nodes to prune in the selected layers "
        f"({listed(refused) or 'none found'}). "
        f"Check `layers` and `exclude`, or use a recipe for edges."
    )


def in_all_blocks(
    groups: Sequence[Group], alike: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], ...]:
    """Names of groups to keep alike: those of all blocks, joined with what must be alike anyway.

    Two groups are the same in different blocks where their names differ in numbers between dots
    alone and they are of one size.
    """
    blocks: dict[tuple[object, ...], list[str]] = {}
    for group in groups:
        parts = tuple("#" if part.isdigit() else part for part in group.name.split("."))
        blocks.setdefault((parts, group.size, group.pools), []).append(group.name)
    found: list[set[str]] = []
    for names in (*alike, *blocks.values()):
        touched = [other for other in found if other & set(names)]
        found = [other for other in found if other not in touched]
        found.append(set(names).union(*touched))
    order = [group.name for group in groups]
    return tuple(tuple(sorted(names, key=order.index)) for names in found if len(names) > 1)


def products_of(
    model: nn.Module, groups: Sequence[Group], sizes: Anatomy, example: Batch
) -> dict[str, float]:
    """Multiply-adds between computed values that go with one class of each group.

    Exact where such a product's cost grows in proportion to the classes of one group, as that of
    attention does to its heads.
    """
    found: dict[str, float] = {}
    if sizes.operations is None or not sizes.operations.other:
        return found
    for group in groups:
        if group.size <= group.pools:
            continue
        gone = torch.zeros(group.pools, group.size // group.pools, dtype=torch.bool)
        gone[:, -1] = True
        gone = gone.flatten()
        small = narrowed(model, [group], {group.name: gone}, example)

        def run(small: nn.Module = small) -> int:
            with evaluating(small), torch.no_grad():
                call(small, example)
            return size_of(example) or 1

        less = sizes.operations.other - count_operations(small, run, outputs=False).other
        if less:
            found[group.name] = less / group.pools
    return found


def living(
    model: nn.Module, groups: Sequence[Group], example: Batch, *, filled: Collection[str] = ()
) -> dict[str, Bool[Tensor, " classes"]]:
    """True for the classes that are not dead already, as in a network whose nodes were pruned.

    `filled` names tensors that are known to hold no zero.
    """
    every = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    found = dead_units(model, tuple(groups), every, example, filled=filled)
    return {group.name: ~dead.units for group, dead in zip(groups, found, strict=True)}


def full_of(sizes: Anatomy) -> frozenset[str]:
    """Names of the tensors of a network that hold no zero."""
    every = {name: math.prod(shape) for name, shape in sizes.shapes.items()}
    return frozenset(name for name, count in sizes.filled.items() if count == every[name] > 0)


def sample_of(model: nn.Module, example: Batch, rows: int = 2) -> Batch:
    """The first rows of an example, or all of it where they run other modules.

    A model that chooses its way by its input is tried on the example that `compact` will see.

    Args:
        model: the network, on the example's device.
        example: one batch.
        rows: how many are enough.
    """
    few = first_of(example, rows)
    if size_of(few) == size_of(example):
        return example
    whole = _ran(model, example)
    try:
        return few if _ran(model, few) == whole else example
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        return example  # a single vector, say, whose entries count as no samples


def _ran(model: nn.Module, batch: Batch) -> set[nn.Module]:
    ran: set[nn.Module] = set()

    def note(module: nn.Module, inputs: Arguments) -> None:
        ran.add(module)

    plain = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    handles = [module.register_forward_pre_hook(note) for module in plain]

    def anew() -> None:
        ran.clear()
        run_on(model, batch)

    try:
        by_shapes(anew)
    finally:
        for handle in handles:
            handle.remove()
    return ran
