"""What a network costs under a plan, and once it is there: parameters, multiply-adds, bytes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prunus.cost.anatomy import Anatomy
from prunus.cost.compressed import compressed_bytes
from prunus.cost.files import (
    Entry,
    FileForm,
    Numbers,
    file_bytes,
    file_form,
    packed_entries,
    ragged,
)
from prunus.cost.latency import Latency
from prunus.coupling import Group
from prunus.ranking import count_true

__all__ = ["Cost", "NodePrices", "edge_cost", "node_cost", "smaller_cost", "sparse_cost"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The price of a network.

    Attributes:
        density: kept / total of the weights that were up for pruning.
        model_density: kept / total of all parameters of the model.
        parameters: kept parameters of the whole model: all of them but the zeros in weights that
            have a view. For nodes, all those of the compact network.
        macs: multiply-adds of one sample, zeros in such weights not counted: linear, convolution
            and recurrent layers, matrix products between computed values (attention), the same
            called as functions; nothing for norms, activations, pooling and embeddings. None
            where no example was given. Zeros inside dense tensors save no time by themselves.
        bytes: the size of the file of tensors that saving writes, header included: kept values
            and one bit per entry, or the dense tensor where that is smaller. For nodes, the size
            of the compact network's file.
        compressed: what the lossless compressed file (`prunus.export.compress`) takes at most,
            whatever the masks look like; None for nodes.
        latency: measured, or None.
        latency_share: measured latency over that of the dense network, or None.
    """

    density: float
    model_density: float
    parameters: int
    macs: int | None
    bytes: int
    compressed: int | None = None
    latency: Latency | None = None
    latency_share: float | None = None


def edge_cost(sizes: Anatomy, kept: Mapping[str, int]) -> Cost:
    """The cost when each named layer keeps so many of its weights that are not zero."""
    counts = {**sizes.layers_filled, **kept}
    return _sparse(sizes, counts, tuple(kept), ())


def sparse_cost(sizes: Anatomy, names: Sequence[str], masks: Mapping[str, Tensor]) -> Cost:
    """The cost of a network as it is, zeros in its weights.

    Args:
        sizes: of the network with zeros.
        names: of the layers that were up for pruning.
        masks: of its parameters, as saving stores them where a kept entry is zero.
    """
    extra = [  # the network has zeros outside its masks, so that equal counts are equal places
        (f"mask|{name}", "uint8", [-(-mask.numel() // 8)])
        for name, mask in masks.items()
        if name not in sizes.stored or count_true(mask) != sizes.filled[sizes.home(name)]
    ]
    counts = {**sizes.layers_filled, **{name: sizes.filled_of(name) for name in names}}
    return _sparse(sizes, counts, names, extra)


def _sparse(
    sizes: Anatomy, counts: Mapping[str, int], names: Sequence[str], extra: Sequence[Entry]
) -> Cost:
    """The cost when the weight of each layer has so many entries that are not zero."""
    total = sum(math.prod(sizes.shapes[n]) for n in sizes.parameters)
    filled = dict(sizes.filled)
    zeros: dict[str, int] = {}
    for name, count in counts.items():
        home = sizes.weight_of(name)
        filled[home] += count - sizes.filled_of(name)
        zeros[home] = zeros.get(home, 0) + math.prod(sizes.weight_shape(name)) - count
    macs = None
    if sizes.operations is not None:
        macs = sizes.operations.other + sum(
            (math.prod(sizes.shapes[n]) - zeros.get(n, 0)) * uses
            for n, uses in sizes.operations.uses.items()
        )
    entries = [*extra]
    homes = {sizes.weight_of(name) for name in counts}
    coded: list[tuple[Entry, int]] = []
    others: list[Entry] = []
    for key, kind in sizes.stored.items():
        home = sizes.home(key)
        if home in sizes.shapes:
            # Where a plan removes weights, it is not known yet which: no slice is counted on.
            box = sizes.boxes.get(home) if filled[home] == sizes.filled[home] else None
            entries += packed_entries(key, kind, sizes.shapes[home], filled[home], box)
            entry = (key, kind, sizes.shapes[home])
            if home in homes and filled[home] < math.prod(sizes.shapes[home]):
                coded.append((entry, filled[home]))
            else:
                others.append(entry)
    selected = sizes.weight_entries(names)
    parameters = total - sum(zeros.values())
    return Cost(
        density=sum(counts[n] for n in names) / selected if selected else 1.0,
        model_density=parameters / total,
        parameters=parameters,
        macs=None if macs is None else round(macs),
        bytes=file_bytes(entries),
        compressed=compressed_bytes(coded, others),
    )


def node_cost(sizes: Anatomy, groups: Sequence[Group], kept: Mapping[str, int]) -> Cost:
    """The exact cost of the compact network when each group keeps so many of its classes."""
    return NodePrices.of(sizes, groups)(kept)


def smaller_cost(
    sizes: Anatomy, shapes: Mapping[str, tuple[int, ...]], layers: Sequence[str]
) -> Cost:
    """The cost of a network of the same parts with other shapes.

    Args:
        sizes: of the dense network.
        shapes: of each of its tensors in the smaller one.
        layers: whose weights were up for pruning.
    """
    axes, ndims = ragged([shapes[name] for name in sizes.shapes])
    return _Parts.of(sizes, layers).cost(axes, ndims)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Parts:
    """A network's tensors by number, for the cost of networks that have them in other shapes.

    Attributes:
        parameters: those that are no buffers.
        entries: of all of them in the dense network.
        weights: those that were up for pruning.
        selected: their entries in the dense network.
        used: those that something is multiplied by.
        uses: how often each entry of these is.
        other: multiply-adds beside; None where nothing is counted.
        stored: those that stand in the file, in turn.
        form: of the file.
    """

    parameters: Numbers
    entries: int
    weights: Numbers
    selected: int
    used: Numbers
    uses: Sequence[float]
    other: float | None
    stored: Numbers
    form: FileForm

    @staticmethod
    def of(sizes: Anatomy, layers: Sequence[str]) -> "_Parts":
        """The parts of a network, and the layers that were up for pruning."""
        number = {name: i for i, name in enumerate(sizes.shapes)}
        weights = list(dict.fromkeys(sizes.weight_of(name) for name in layers))
        stored = [(key, kind, sizes.home(key)) for key, kind in sizes.stored.items()]
        stored = [(key, kind, home) for key, kind, home in stored if home in number]
        operations = sizes.operations
        uses = {} if operations is None else operations.uses

        def numbered(names: Iterable[str]) -> Numbers:
            return np.array([number[name] for name in names], dtype=np.int64)

        return _Parts(
            parameters=numbered(sizes.parameters),
            entries=sum(math.prod(sizes.shapes[n]) for n in sizes.parameters),
            weights=numbered(weights),
            selected=sum(math.prod(sizes.shapes[n]) for n in weights),
            used=numbered(uses),
            uses=list(uses.values()),
            other=None if operations is None else operations.other,
            stored=numbered(home for _, _, home in stored),
            form=file_form(tuple((key, kind) for key, kind, _ in stored)),
        )

    def cost(self, axes: Numbers, ndims: Numbers) -> Cost:
        """The cost of the network whose tensors have these axes; see `ragged`."""
        after = axes.prod(axis=1)
        left = int(after[self.parameters].sum())
        macs = self.other
        if macs is not None:
            used = after[self.used].tolist()
            macs += sum(n * uses for n, uses in zip(used, self.uses, strict=True))
        kept = int(after[self.weights].sum())
        return Cost(
            density=kept / self.selected if self.selected else 1.0,
            model_density=left / self.entries,
            parameters=left,
            macs=None if macs is None else round(macs),
            bytes=self.form.bytes(axes[self.stored], ndims[self.stored]),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class NodePrices:
    """The exact cost of the compact network for any numbers of kept classes.

    All classes of a group are alike, so a parameter shrinks along each axis by the removed
    classes' entries there, and products of two groups come out right. Every group keeps a class.

    Attributes:
        parts: of the network.
        axes: lengths of its tensors' axes, a row for each, filled up with ones.
        ndims: how many axes each has.
        groups: {name: number of classes}.
        rows: of the axes that the classes of a group lie along.
        columns: of these.
        owners: the number of the group.
        steps: entries of each of its classes there.
    """

    parts: _Parts
    axes: Numbers
    ndims: Numbers
    groups: Mapping[str, int]
    rows: Numbers
    columns: Numbers
    owners: Numbers
    steps: Numbers

    @staticmethod
    def of(sizes: Anatomy, groups: Sequence[Group]) -> "NodePrices":
        """The prices of the groups of a network."""
        number = {name: i for i, name in enumerate(sizes.shapes)}
        axes, ndims = ragged(list(sizes.shapes.values()))
        layers = {name for group in groups for name in (*group.producers, *group.consumers)}
        members: list[tuple[int, int, int, int]] = []
        for owner, group in enumerate(groups):
            places = {(sizes.home(s.parameter), s.axis): s for s in group.slots}  # a tie once
            members += [
                (number[name], axis, owner, slot.index.numel() // group.size)
                for (name, axis), slot in places.items()
                if name in number
            ]
        rows, columns, owners, steps = np.array(members, dtype=np.int64).reshape(-1, 4).T
        return NodePrices(
            parts=_Parts.of(sizes, sorted(layers)),
            axes=axes,
            ndims=ndims,
            groups={group.name: group.size for group in groups},
            rows=rows,
            columns=columns,
            owners=owners,
            steps=steps,
        )

    def __call__(self, kept: Mapping[str, int]) -> Cost:
        """The cost when each group keeps so many of its classes."""
        counts = [size - max(1, kept[name]) for name, size in self.groups.items()]
        gone = np.array(counts, dtype=np.int64)
        axes = self.axes.copy()
        np.subtract.at(axes, (self.rows, self.columns), gone[self.owners] * self.steps)
        return self.parts.cost(axes, self.ndims)
