"""What coupling finds: the classes of channels that can only go together."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Role = Literal["in", "out"]
Heads = Literal["kv", "query"]


def layer_of(parameter: str) -> str:
    """Name of the layer whose weight a parameter is: its module's, or its own where it is one of
    several weights, such as "lstm.weight_ih_l0"."""
    module, _, leaf = parameter.rpartition(".")
    return module if leaf == "weight" else parameter


@dataclass(frozen=True)
class Member:
    """One row or column of one parameter (or buffer) of a model.

    Attributes:
        parameter: name in the `state_dict`, for instance "layers.0.weight" or a running mean.
        axis: axis of the parameter along which the member is one slice.
        index: position of the slice.
        role: "in" for what a consumer reads; "out" for what makes the channel: rows, biases,
            norm parameters, scales.
    """

    parameter: str
    axis: int
    index: int
    role: Role


@dataclass(frozen=True, eq=False)
class Slot:
    """All members of a group inside one parameter and axis, as arrays.

    Attributes:
        parameter: name in the `state_dict`.
        axis: axis of the parameter.
        role: "in" or "out", as in `Member`.
        index: positions along the axis, ascending inside each class.
        unit: the class, 0 ≤ unit < size of the group, that each position belongs to.
    """

    parameter: str
    axis: int
    role: Role
    index: Int[Tensor, " entries"]
    unit: Int[Tensor, " entries"]

    @property
    def layer(self) -> str:
        """Name of the layer whose weight the parameter is, if it is one's: see `prunus.weights`."""
        return layer_of(self.parameter)


@dataclass(frozen=True, eq=False)
class Group:
    """The channel classes that one set of producers shares; a class is removed as a whole.

    Attributes:
        name: module name of the first producer (with "#2", "#3", … where it heads several groups).
        size: number of classes.
        slots: the members, parameter by parameter.
        producers: names of the layers whose outputs these are, in order of execution: linear and
            convolution modules (depthwise convolutions, which pass channels on, are among them),
            and weights of recurrent modules, such as "lstm.weight_ih_l0".
        consumers: names of the layers that read them.
        norms: names of the norm modules that act on them.
        exact: False where removing a class changes what a norm makes of the others (a LayerNorm
            or GroupNorm whose statistics run over the classes).
        written: True where the model's code writes the width down: the classes meet positions
            that a padding or a constant of fixed size fills. They can be masked, but no module
            attribute makes them narrower.
        embeddings: names of the embeddings whose columns belong to the classes.
        raw: names of parameters that make or read the classes in products which the code writes
            out, such as the `in_proj_weight` of an attention of one's own; no view shows what
            they read.
        heads: "kv" where a class is a head of attention, with all query heads that it serves;
            "query" where it is one of several query heads of a kv head, which stays; else None.
        pools: the classes fall into that many runs of equal length that have to keep the same
            number each: the query heads of every kv head; 1 for all others.
        drawn: True where the network draws a random number for each class when it runs: with
            fewer of them it would draw others, and could not be held against the masked network.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    norms: tuple[str, ...]
    exact: bool
    written: bool = False
    embeddings: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()
    heads: Heads | None = None
    pools: int = 1
    drawn: bool = False

    def __repr__(self) -> str:
        what = f"{self.heads} heads" if self.heads else "classes"
        kind = "exact" if self.exact else "inexact"
        written = ", width written in the code" if self.written else ""
        written += ", random numbers drawn for each" if self.drawn else ""
        makers = self.producers or self.embeddings or self.raw
        return (
            f"Group({self.name!r}: {self.size} {what}, made by {_few(makers)}, read by "
            f"{_few(self.consumers)}; {kind}{written})"
        )

    def balanced(self, units: Bool[Tensor, " classes"]) -> Bool[Tensor, " classes"]:
        """The first of some classes, as many in every pool as the pool with fewest has."""
        rows = units.view(self.pools, -1)
        least = int(rows.sum(1).min())
        return (rows & (rows.cumsum(1) <= least)).flatten()

    def spread(self, count: int) -> Bool[Tensor, " classes"]:
        """`count` classes (of the whole group), evenly over the pools and over each of them."""
        each = count // self.pools
        row = torch.zeros(self.size // self.pools, dtype=torch.bool)
        if each:
            row[torch.linspace(0, len(row) - 1, each).round().long()] = True
        return row.repeat(self.pools)

    @property
    def classes(self) -> tuple[tuple[Member, ...], ...]:
        """The members of each class."""
        found: list[list[Member]] = [[] for _ in range(self.size)]
        for slot in self.slots:
            for index, unit in zip(slot.index.tolist(), slot.unit.tolist(), strict=True):
                found[unit].append(Member(slot.parameter, slot.axis, index, slot.role))
        return tuple(tuple(members) for members in found)


@dataclass(frozen=True, eq=False)
class Coupling:
    """The removable channel classes of one model.

    Attributes:
        groups: what can be removed, in the order of execution of the first producers.
        refused: layers none of whose outputs can be removed, each with the reason.
        numbered: names of groups whose classes meet numbers of the code: sizes of a view, positions
            of a slice, or anything of which no one knows. Whether these fit other widths only a
            trial tells.
    """

    groups: tuple[Group, ...]
    refused: dict[str, str]
    numbered: frozenset[str] = frozenset()


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "no layer") + more
