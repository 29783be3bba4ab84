"""Units that a network can lose without changing: nobody reads them, or they emit a constant."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prunus.coupling import Group, Slot
from prunus.surgery.readings import Reading, joined, read_inputs, variants
from prunus.surgery.zeros import Zeros

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Dead:
    """The dead units of one group.

    Attributes:
        units: True where a class can go.
        inputs: for each consumer, the constant it reads on each of its input channels (any value
            where the channel is no constant).
        blank: units all of whose members are zero, so that there is nothing to fold.
    """

    units: Bool[Tensor, " size"]
    inputs: dict[str, Float[Tensor, " channels"]]
    blank: Bool[Tensor, " size"]


def is_depthwise(module: nn.Module) -> bool:
    """A convolution whose every filter reads one channel of several."""
    return isinstance(module, CONVOLUTIONS) and 1 < module.groups == module.in_channels


def is_read(group: Group, layer: str) -> bool:
    """Whether a layer is a module of its own, whose call shows what it reads; a recurrent weight
    is none, and only zeros go there."""
    return any(slot.layer == layer != slot.parameter for slot in group.slots)


def pads_with_zeros(module: nn.Module) -> bool:
    """A convolution whose border reads zeros, so that a constant input is none there."""
    if isinstance(module, TRANSPOSED):  # its outputs read different numbers of inputs
        return True
    if not isinstance(module, CONVOLUTIONS) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding == "same" and any(k > 1 for k in module.kernel_size)
    return any(p > 0 for p in module.padding)


@dataclass(frozen=True, eq=False)
class Suspects:
    """What the zeros of a group say about its units.

    Attributes:
        zero: for each `in` slot's parameter, the units whose columns are all zero.
        unread: units whose columns are all zero in every consumer.
        silent: units whose rows are zero in every producer that is not depthwise: whatever
            they emit depends on no input.
        cut: units of a single source with a zero norm weight or depthwise filter behind it, which
            may or may not stand on every path to the consumers.
        blank: units all of whose members among the parameters are zero.
    """

    zero: dict[str, Bool[Tensor, " size"]]
    blank: Bool[Tensor, " size"]
    unread: Bool[Tensor, " size"]
    silent: Bool[Tensor, " size"]
    cut: Bool[Tensor, " size"]


def dead_units(
    model: nn.Module,
    groups: tuple[Group, ...],
    alive: dict[str, Tensor],
    example: object,
    *,
    filled: Collection[str] = (),
) -> list[Dead]:
    """The units of each group that can go, given the zeros of the model.

    A unit goes where each consumer either has zero columns for it or reads a constant: the unit
    is silent, or cut off (confirmed by redrawing its source's rows), and what it emits, read off
    at the consumer on the example and its variants, is the same for all samples and positions.
    Where a norm takes statistics over the group, only a unit all of whose members are zero goes.
    `filled` names tensors that are known to hold no zero.
    """
    zeros = Zeros(model.state_dict(keep_vars=True), filled)
    learned = {name for name, _ in model.named_parameters()}
    modules = dict(model.named_modules(remove_duplicate=False))
    suspects = [_suspects(modules, zeros, learned, group, alive[group.name]) for group in groups]
    read = {
        name
        for group, suspect in zip(groups, suspects, strict=True)
        for name in group.consumers
        if (suspect.silent | suspect.cut).any() and is_read(group, name)
    }
    readings = read_inputs(model, example, read) if read else {}
    for other in variants(example) if read else ():
        for name, reading in read_inputs(model, other, read, strict=False).items():
            readings[name] = joined(readings[name], reading) if name in readings else reading
    redrawn = _read_redrawn(model, groups, [s.cut for s in suspects], example)

    found = []
    for group, suspect in zip(groups, suspects, strict=True):
        fine = suspect.silent | suspect.cut
        for slot in _inputs(group) if bool(fine.any()) else ():
            name = slot.layer
            constant = _constant_units(model, group, slot, readings.get(name))
            if name in redrawn:
                same = joined(readings[name], redrawn[name])
                constant &= ~suspect.cut | _constant_units(model, group, slot, same)
            fine &= suspect.zero[slot.parameter] | constant
        inputs = {
            name: (readings[name].low + readings[name].high) / 2
            for name in group.consumers
            if name in readings
        }
        found.append(Dead(units=suspect.unread | fine, inputs=inputs, blank=suspect.blank))
    return found


def _suspects(
    modules: Mapping[str, nn.Module], zeros: Zeros, learned: set[str], group: Group, alive: Tensor
) -> Suspects:
    weights = {f"{name}.weight" for name in (*group.producers, *group.norms, *group.embeddings)}
    none = torch.zeros_like(alive)
    if _all_filled(zeros, learned, group, weights):
        zero = {slot.parameter: none for slot in _inputs(group)}
        return Suspects(zero=zero, blank=none, unread=none, silent=none, cut=none)
    zero = {s.parameter: _zero_units(zeros, group, s) for s in _inputs(group)}
    rows = {
        s.parameter: _zero_units(zeros, group, s)
        for s in group.slots
        if s.role == "out"
        and s.parameter in zeros
        and (s.parameter in learned or s.parameter in weights or s.layer in group.raw)
    }
    every = [v for n, v in (*zero.items(), *rows.items()) if n in learned]
    gone = torch.stack([alive, *every]).all(dim=0)
    blank = torch.stack([torch.ones_like(alive), *zero.values(), *every]).all(dim=0)
    if not group.exact:
        return Suspects(zero=zero, blank=blank, unread=gone, silent=none, cut=none)
    unread = alive & torch.stack([alive, *zero.values()]).all(dim=0)
    if not all(is_read(group, name) for name in group.producers):
        # What a recurrent unit emits changes from step to step even where no input reaches it.
        return Suspects(zero=zero, blank=blank, unread=unread, silent=none, cut=none)
    sources = [p for p in group.producers if not is_depthwise(modules[p])]
    sources += group.embeddings
    behind = [p for p in (*group.producers, *group.norms) if p not in sources]
    made = [rows[f"{p}.weight"] for p in sources]
    made += [rows[s.parameter] for s in group.slots if s.layer in group.raw and s.parameter in rows]
    silent = torch.stack(made).all(dim=0) & alive & ~unread
    cut = none
    if len(made) == 1 and len(sources) == 1 and not group.embeddings:
        stops = [rows[f"{p}.weight"] for p in behind if f"{p}.weight" in rows]
        cut = torch.stack([cut, *stops]).any(dim=0) & alive & ~unread & ~silent
    return Suspects(zero=zero, blank=blank, unread=unread, silent=silent, cut=cut)


def _all_filled(zeros: Zeros, learned: set[str], group: Group, weights: set[str]) -> bool:
    """Whether every class has, in each weight that makes, scales or reads it, more than zeros."""
    read = {slot.parameter for slot in _inputs(group)}
    return not learned.isdisjoint(read) and all(
        zeros.none(slot.parameter, slot.axis)
        for slot in group.slots
        if slot.parameter in zeros
        and (slot.parameter in read or slot.parameter in weights or slot.layer in group.raw)
    )


def fold(model: nn.Module, group: Group, units: Tensor, inputs: dict[str, Tensor]) -> None:
    """Move what the units emit into the consumers' biases, and make all their members zero.

    Parameters get numbers of their own before they change: others may share them.
    """
    with torch.no_grad():
        for slot in _inputs(group):
            name = slot.layer
            owner, _, leaf = slot.parameter.rpartition(".")
            module = model.get_submodule(owner)
            weight = _own(getattr(module, leaf))
            index = slot.index[units[slot.unit]].to(weight.device)
            if slot.axis != 1 or not is_read(group, name):
                # of a transposed or recurrent layer: only zeros go there
                weight.index_fill_(slot.axis, index, 0)
                continue
            columns = weight[:, index].to(torch.float64)
            if name in inputs and bool((columns != 0).any()):
                taps = columns.flatten(2).sum(dim=2) if columns.ndim > 2 else columns
                conv_groups = _conv_groups(module)
                emitted = inputs[name].to(weight.device).reshape(conv_groups, -1)[:, index]
                read = (columns.flatten(1) != 0).reshape(len(weight), len(index), -1).any(dim=2)
                shift = torch.where(
                    read, emitted.repeat_interleave(len(weight) // conv_groups, 0) * taps, 0.0
                ).sum(dim=1)
                _add_to_bias(module, shift)
            weight[:, index] = 0
        for slot in group.slots:
            if slot.role == "out":
                owner, _, leaf = slot.parameter.rpartition(".")
                tensor = _own(getattr(model.get_submodule(owner), leaf))
                index = slot.index[units[slot.unit]].to(tensor.device)
                tensor.index_fill_(slot.axis, index, 0)


def _own(tensor: Tensor) -> Tensor:
    """The tensor, with memory of its own."""
    tensor.data = tensor.data.clone()
    return tensor


@contextmanager
def _lent(model: nn.Module, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """Copies in place of some tensors, by name; the tensors come back untouched."""
    found: dict[str, Tensor] = {}
    before: list[tuple[Tensor, Tensor]] = []
    try:
        for name in sorted(names):
            owner, _, leaf = name.rpartition(".")
            tensor: Tensor = getattr(model.get_submodule(owner), leaf)
            before.append((tensor, tensor.data))
            found[name] = _own(tensor).data
        yield found
    finally:
        for tensor, numbers in reversed(before):
            tensor.data = numbers


def _add_to_bias(module: nn.Module, shift: Tensor) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if bool((shift == 0).all()):
        return
    if module.bias is None:
        zeros = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
    bias = _own(module.bias)  # type: ignore[arg-type]
    bias.copy_(bias.to(torch.float64) + shift)


def _read_redrawn(
    model: nn.Module, groups: tuple[Group, ...], cut: list[Tensor], example: object
) -> dict[str, Reading]:
    """The range of each consumer's inputs while the sources of cut units emit other values.

    Rows are redrawn and biases set to large values of both signs, so that an activation that
    happens to be off (or saturated) in the middle of a path around the cut shows it at one of
    them. Values are huge once: a path that opens only far from the example counts as well.
    """
    places: list[tuple[str, int, Tensor]] = []
    names: set[str] = set()
    for group, units in zip(groups, cut, strict=True):
        if units.any():
            names |= {name for name in group.consumers if is_read(group, name)}
            source = next(p for p in group.producers if not is_depthwise(model.get_submodule(p)))
            places += [
                (slot.parameter, slot.axis, slot.index[units[slot.unit]])
                for slot in group.slots
                if slot.parameter in (f"{source}.weight", f"{source}.bias") and slot.role == "out"
            ]
    if not places:
        return {}
    generator = torch.Generator().manual_seed(0)
    readings = []
    with _lent(model, {name for name, _, _ in places}) as lent:
        for size in (-10.0, 10.0, -1e4, 1e4):
            for name, axis, index in places:
                tensor = lent[name].movedim(axis, 0)
                rows = torch.randn(len(index), *tensor.shape[1:], generator=generator)
                values = rows * abs(size) / 10 if rows.ndim > 1 else torch.full_like(rows, size)
                tensor[index.to(tensor.device)] = values.to(tensor)
            readings.append(read_inputs(model, example, names))
    return {name: reduce(joined, (each[name] for each in readings)) for name in readings[0]}


def _inputs(group: Group) -> list[Slot]:
    return [slot for slot in group.slots if slot.role == "in"]


def _conv_groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, CONVOLUTIONS) else 1


def _all_of(group: Group, slot: Slot, entries: Tensor) -> Tensor:
    """True for each class all of whose entries in the slot are True."""
    if torch.equal(slot.unit, torch.arange(group.size)):  # one of each, in order
        return entries
    result = torch.ones(group.size, dtype=torch.bool)
    result[slot.unit[~entries]] = False
    return result


def _zero_units(zeros: Zeros, group: Group, slot: Slot) -> Tensor:
    """True for each class whose slices of the parameter are all zero."""
    if zeros.none(slot.parameter, slot.axis):
        return torch.zeros(group.size, dtype=torch.bool)
    return _all_of(group, slot, zeros.slices(slot.parameter, slot.axis)[slot.index])


def _channels(model: nn.Module, slot: Slot, values: Tensor) -> Tensor:
    """True for each entry of an `in` slot whose channels, one per conv group, are all True."""
    if slot.axis != 1:
        return values[slot.index]
    groups = _conv_groups(model.get_submodule(slot.parameter.rpartition(".")[0]))
    return values.reshape(groups, -1).all(dim=0)[slot.index]


def _constant_units(model: nn.Module, group: Group, slot: Slot, reading: Reading | None) -> Tensor:
    """True for each class that a consumer reads as a constant everywhere, borders included."""
    if reading is None:
        return torch.zeros(group.size, dtype=torch.bool)
    fine = reading.constant()
    if pads_with_zeros(model.get_submodule(slot.parameter.rpartition(".")[0])):
        fine = (reading.low == 0) & (reading.high == 0)
    return _all_of(group, slot, _channels(model, slot, fine))
