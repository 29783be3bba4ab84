"""What a network costs under a plan, and once it is there: parameters, multiply-adds, bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from prunus.cost.anatomy import Anatomy
from prunus.cost.compressed import compressed_bytes
from prunus.cost.files import Entry, file_bytes, packed_entries
from prunus.cost.latency import Latency
from prunus.coupling import Group
from prunus.ranking import count_true

__all__ = ["Cost", "edge_cost", "node_cost", "smaller_cost", "sparse_cost"]


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
    return _sparse(sizes, dict(sizes.layers_filled), names, extra)


def _sparse(
    sizes: Anatomy, counts: Mapping[str, int], names: Sequence[str], extra: Sequence[Entry]
) -> Cost:
    """The cost when the weight of each layer has so many entries that are not zero."""
    total = sum(math.prod(sizes.shapes[n]) for n in sizes.parameters)
    filled = dict(sizes.filled)
    zeros: dict[str, int] = {}
    for name, count in counts.items():
        home = sizes.weight_of(name)
        filled[home] += count - sizes.layers_filled[name]
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
    """The exact cost of the compact network when each group keeps so many of its classes.

    All classes of a group are alike, so a parameter shrinks along each axis by the removed
    classes' entries there, and products of two groups come out right. Every group keeps a class.
    """
    lengths = {name: list(shape) for name, shape in sizes.shapes.items()}
    layers: set[str] = set()
    for group in groups:
        layers.update(group.producers, group.consumers)
        gone = group.size - max(1, kept[group.name])
        places = {(sizes.home(s.parameter), s.axis): s for s in group.slots}  # a tie once
        for (name, axis), slot in places.items():
            if name in lengths:
                lengths[name][axis] -= gone * (len(slot.index) // group.size)
    return smaller_cost(sizes, {n: tuple(axes) for n, axes in lengths.items()}, sorted(layers))


def smaller_cost(
    sizes: Anatomy, shapes: Mapping[str, tuple[int, ...]], layers: Sequence[str]
) -> Cost:
    """The cost of a network of the same parts with other shapes.

    Args:
        sizes: of the dense network.
        shapes: of each of its tensors in the smaller one.
        layers: whose weights were up for pruning.
    """
    after = {name: math.prod(axes) for name, axes in shapes.items()}
    total = sum(math.prod(sizes.shapes[n]) for n in sizes.parameters)
    left = sum(after[n] for n in sizes.parameters)
    weights = list(dict.fromkeys(sizes.weight_of(name) for name in layers))
    selected = sum(math.prod(sizes.shapes[n]) for n in weights)
    macs = None
    if sizes.operations is not None:
        macs = sizes.operations.other + sum(
            after[n] * uses for n, uses in sizes.operations.uses.items()
        )
    stored = [(key, kind, sizes.home(key)) for key, kind in sizes.stored.items()]
    return Cost(
        density=sum(after[n] for n in weights) / selected if selected else 1.0,
        model_density=left / total,
        parameters=left,
        macs=None if macs is None else round(macs),
        bytes=file_bytes((k, kind, shapes[home]) for k, kind, home in stored if home in shapes),
    )
