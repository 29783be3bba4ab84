"""What scores and rules see of units: classes with their layers, chains of blocks, experts."""

from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Literal, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from prunus.calibration.classes import columns, read_raw
from prunus.coupling import Group, Slot
from prunus.dpp import node_gram
from prunus.layer import Layer, MissingStatistic, missing
from prunus.surgery.experts import ExpertScores

__all__ = [
    "BlockView",
    "ClassView",
    "ExpertView",
    "UnitView",
    "class_view",
    "columns",
    "parameter_masks",
]

Kernel = Literal["preactivation", "activation"]
T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassView:
    """A group as selection rules see it: its layers, and where each class lies in them.

    Attributes:
        name: the group's name.
        group: its classes and their members.
        producers: layers whose rows are members, with Int[classes, rows per class].
        consumers: layers whose columns are members, with Int[classes, columns per class], as
            columns of the weight matrix (channels × taps).
        statistics: {name: value} of what was collected of the classes themselves.
        scales: the weights of the norms that act on them, by name of the norm.
        found: what rules have found of these very statistics for any number of kept classes, or
            None where nothing outlives a call.
    """

    name: str
    group: Group
    producers: Mapping[str, tuple[Layer, Int[Tensor, "classes rows"]]]
    consumers: Mapping[str, tuple[Layer, Int[Tensor, "classes columns"]]]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, Float[Tensor, "classes entries"]] = field(default_factory=dict)
    found: MutableMapping[Hashable, object] | None = None

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """What `find` gives, looked up where it is known for this key from the same statistics."""
        if self.found is None:
            return find()
        own = (self.name, key)
        if own not in self.found:
            self.found[own] = find()
        return cast(T, self.found[own])

    def statistic(self, name: str) -> Tensor:
        """One statistic of the classes, or a ValueError that names the group and what it lacks."""
        if name not in self.statistics:
            unseen = [n for n in self.consumers if any(n == s.parameter for s in self.group.slots)]
            raw = read_raw(self.group)
            if unseen or raw:
                why = (
                    "which code multiplies by without a layer"
                    if raw
                    else ("whose module does not show the outputs of one weight alone")
                )
                raise MissingStatistic(
                    f"Group {self.name!r} cannot have the statistic {name!r}: it is read by "
                    f"{', '.join(raw or unseen)}, {why}. Exclude its layers, or use a score of "
                    f"weights or activations."
                )
            raise missing(f"Group {self.name!r}", name)
        return self.statistics[name]

    def gram(
        self, kernel: Kernel = "preactivation", *, include_bias: bool = True
    ) -> Float[Tensor, "classes classes"]:
        """Inner products of the classes' item vectors, averaged over samples, float64.

        Item vectors are the pre-activations that the producers compute (from W, b and the Gram
        of their inputs), or the activations that the consumers read (from their Gram); several
        members of a class, and several layers, add up.

        Raises:
            ValueError: a layer lacks the statistics, or no layer tells these vectors (a depthwise
                convolution knows only each channel by itself).
        """
        total = torch.zeros(self.group.size, self.group.size, dtype=torch.float64)
        told = False
        sides = self.producers if kernel == "preactivation" else self.consumers
        for layer, place in sides.values():
            if kernel == "activation":
                layer.require("gram")
                grams = layer.gram if layer.groups > 1 else layer.gram[None]  # type: ignore[index]
                for gram in grams:  # type: ignore[union-attr]
                    for column in place.T:
                        total += gram.cpu()[column][:, column]
                told = True
                continue
            layer.require("gram", *(("mean",) if include_bias and layer.bias is not None else ()))
            rows_per_block = layer.weight.shape[0] // layer.groups
            if layer.groups > 1 and rows_per_block == 1:
                continue  # depthwise: no moments between channels
            blocks = layer.blocks()
            for member in place.T:
                block = member // rows_per_block
                if bool((block != block[0]).any()):
                    raise ValueError(
                        f"The classes of {self.name!r} lie in several groups of the convolution "
                        f"{layer.name!r}, whose joint moments are unknown. Use "
                        f"kernel='activation', or exclude the layer."
                    )
                part, rows = blocks[int(block[0])], member - rows_per_block * block
                with_bias = include_bias and part.bias is not None
                total += node_gram(
                    part.gram.cpu(),  # type: ignore[union-attr]
                    part.weight.cpu()[rows],
                    mean=None if part.mean is None else part.mean.cpu(),
                    bias=part.bias.cpu()[rows] if with_bias else None,  # type: ignore[union-attr]
                )
            told = True
        if not told:
            raise ValueError(
                f"No layer of group {self.name!r} tells the {kernel} vectors of its classes. Use "
                f"the other kernel, or exclude the group."
            )
        return total


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockView:
    """A chain of blocks as scores see it.

    Attributes:
        name: of the chain.
        blocks: names of the blocks, or of those whose half may go, in order of execution.
        turned: 1 − E cos(x, x + f(x)) per token of every block's input x and output.
        gap: mean gap, "kl" or "mse", of the network's output without some blocks, given by their
            places.
        going: how many at most will go.
        generator: for random orders.
    """

    name: str
    blocks: tuple[str, ...]
    turned: Callable[[], Float[Tensor, " blocks"]]
    gap: Callable[[Sequence[int], str], float]
    going: int
    generator: Generator


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpertView:
    """A layer of experts as scores see it.

    Attributes:
        name: of the layer.
        count: of its experts.
        effects: what each did on the data: `reap`, `gate`, `tokens`, see
            `prunus.surgery.experts.ExpertScores`.
        gaps: E‖y − y₋ₑ‖² per token of the layer's output without each.
    """

    name: str
    count: int
    effects: Callable[[], ExpertScores]
    gaps: Callable[[], Float[Tensor, " experts"]]


UnitView = Layer | ClassView | BlockView | ExpertView  # what a selection rule may be given


def class_view(
    group: Group,
    layers: Mapping[str, Layer],
    parameters: Mapping[str, Tensor] | None = None,
    found: MutableMapping[Hashable, object] | None = None,
) -> ClassView:
    """The group with its layers; a layer that `layers` lacks raises a KeyError.

    Args:
        group: its classes.
        layers: producers and consumers.
        parameters: of the model, by name, from which the norms' scales are read.
        found: what rules remember of the statistics.
    """
    known = parameters or {}
    members = {*group.producers, *group.consumers}
    made = {slot.layer: slot for slot in group.slots if slot.role == "out"}
    made = {name: slot for name, slot in made.items() if name in members}
    read = {slot.layer: None for slot in group.slots if slot.role == "in"}
    own = {name: layers[name] for name in (*made, *read) if name in members}
    norms = {
        norm: slot
        for norm in group.norms
        for slot in group.slots
        if slot.parameter == f"{norm}.weight" and slot.parameter in known
    }

    def rows(name: str) -> tuple[Layer, Tensor]:
        slot, layer = made[name], own[name]
        place = _places(group, slot)
        if slot.axis and layer.groups > 1:  # every group of a transposed convolution makes it
            each = len(layer.weight) // layer.groups
            place = torch.cat([place + each * k for k in range(layer.groups)], 1)
        return layer, place

    def scale(norm: str) -> Tensor:
        slot = norms[norm]
        return known[slot.parameter].detach()[_places(group, slot)]

    consumers = [name for name in read if name in own]
    return ClassView(
        name=group.name,
        group=group,
        producers=_Found(made, rows),
        consumers=_Found(consumers, lambda name: (own[name], columns(group, own[name]))),
        statistics={
            key: value
            for name in consumers
            for key, value in own[name].classes.get(group.name, {}).items()
            if value.shape[-1] == group.size  # of other heads, where a calibration had them
        },
        scales=_Found(norms, scale),
        found=found,
    )


class _Found(Mapping[str, T]):
    """Values by name, each found when it is first asked for: most rules look at few of them."""

    def __init__(self, names: Iterable[str], find: Callable[[str], T]) -> None:
        self._known: dict[str, T | None] = dict.fromkeys(names)
        self._find = find

    def __getitem__(self, name: str) -> T:
        known = self._known[name]
        if known is None:
            known = self._known[name] = self._find(name)
        return known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _places(group: Group, slot: Slot) -> Int[Tensor, "classes entries"]:
    """Where each class lies along the slot's axis."""
    rises = bool((slot.unit[1:] >= slot.unit[:-1]).all())
    index = slot.index if rises else slot.index[slot.unit.argsort(stable=True)]
    return index.view(group.size, -1)


def parameter_masks(
    group: Group, kept: Bool[Tensor, " classes"], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Bool[Tensor, "..."]]:
    """What the kept classes leave of every parameter: rows, biases, norm parameters, columns.

    Buffers (running statistics) are left out: a removed channel's are never read. The masks are
    to be read alone: one that is equal along an axis holds its entries once.
    """
    masks: dict[str, Tensor] = {}
    for slot in group.slots:
        if slot.parameter not in shapes:
            continue
        shape = shapes[slot.parameter]
        line = torch.ones(shape[slot.axis], dtype=torch.bool)
        line[slot.index] = kept[slot.unit]
        view = [1] * len(shape)
        view[slot.axis] = -1
        lines = line.view(view)
        known = masks.get(slot.parameter)
        masks[slot.parameter] = lines.expand(shape) if known is None else known & lines
    return masks
