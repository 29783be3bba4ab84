"""Parameters as operations meet them: which one a tensor is a view or a copy of, axis by axis."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.coupling.shadow import Geometry, geometry
from prunus.layer import view_of
from prunus.weights import weights_of

__all__ = ["LAYERS", "Axis", "Book", "Weight", "computed_weight", "layer_names", "twins"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Entry:
    """A parameter (or buffer) and where its entries lie.

    Attributes:
        name: name in the `state_dict`.
        first: label number of the first entry of its storage; entry i has label −(first + i) − 1.
        shape: sizes, strides and offset in the storage.
    """

    name: str
    first: int
    shape: Geometry

    def index(self, place: Tensor) -> tuple[Tensor, ...]:
        """The index along each axis of entries given by their place in the storage."""
        sizes, strides, offset = self.shape
        inside = place - offset
        order = sorted(range(len(sizes)), key=lambda a: (strides[a], sizes[a]), reverse=True)
        found: dict[int, Tensor] = {}
        for a in order:
            step = max(1, strides[a])
            found[a] = torch.zeros_like(inside) if sizes[a] == 1 else inside // step
            inside = inside - found[a] * step
        return tuple(found[a] for a in range(len(sizes)))


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a view of a parameter.

    Attributes:
        axis: the parameter's axis that it runs along (the first one, where it is flattened).
        index: position along that axis of each of the view's positions.
    """

    axis: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class Weight:
    """A view or copy of one parameter.

    Attributes:
        name: name of the parameter in the `state_dict`.
        axes: for each axis of the view what it runs along; None where the entry does not depend
            on it.
        whole: True where the view is the whole parameter in its own order of axes.
    """

    name: str
    axes: tuple[Axis | None, ...]
    whole: bool


class Book:
    """All parameters and buffers of a model by where they lie."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        parameters = dict(model.named_parameters())
        self.tied = _tied(self.modules, parameters)
        together = {name: names for names in self.tied.values() for name in names}
        self.twins = {n: o for n, o in twins(self.modules).items() if n not in together}
        self.entries: list[Entry] = []
        self.sizes: dict[str, tuple[int, ...]] = {}
        self._by_storage: dict[int, list[Entry]] = {}
        self._firsts: list[int] = []
        self._keep: list[Tensor] = []
        # What whole parameters are, as they lie and turned: they are met again and again.
        self._lines: dict[str, Tensor] = {}
        self._wholes: dict[tuple[str, bool], Weight] = {}
        self._counts: dict[int, Tensor] = {}
        self._owners: dict[str, str | None] = {}
        self.total = 0
        self.learned = parameters.keys()
        persistent = set(model.state_dict(keep_vars=True))
        firsts: dict[int, int] = {}
        named: list[tuple[str, Tensor]] = [*parameters.items(), *model.named_buffers()]
        for name, tensor in named:
            if name not in persistent or not _plain(tensor) or tensor.numel() == 0:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in firsts:
                firsts[storage._cdata] = self.total
                self.total += storage.nbytes() // tensor.element_size()
            entry = Entry(name, firsts[storage._cdata], geometry(tensor))
            self._keep.append(tensor)
            self.entries.append(entry)
            self.sizes[name] = entry.shape[0]
            self._by_storage.setdefault(storage._cdata, []).append(entry)
        self.entries.sort(key=lambda e: e.first + e.shape[2])
        for own in self._by_storage.values():
            own.sort(key=lambda e: e.shape[2], reverse=True)
        self._starts = torch.tensor([e.first + e.shape[2] for e in self.entries], device="cpu")

    def of(self, tensor: Tensor) -> Entry | None:
        """The parameter that a tensor is a view of, by where it lies."""
        offset = tensor.storage_offset()
        for entry in self._by_storage.get(tensor.untyped_storage()._cdata, ()):
            if offset >= entry.shape[2]:
                return entry
        return None

    def at(self, numbers: Tensor) -> Tensor:
        """The place in `entries` of the parameter that each entry by number belongs to."""
        return torch.searchsorted(self._starts, numbers, right=True) - 1

    def labels(self, tensor: Tensor) -> Tensor:
        """Labels of a view of a parameter, entry by entry."""
        entry = self.of(tensor)
        assert entry is not None  # the caller has asked
        if tensor.ndim != 1 or geometry(tensor) != entry.shape:
            return self._labels(entry, tensor)
        if entry.name not in self._lines:
            self._lines[entry.name] = self._labels(entry, tensor)
        return self._lines[entry.name]

    def _labels(self, entry: Entry, tensor: Tensor) -> Tensor:
        corner = entry.first + int(tensor.storage_offset())
        labels: Tensor | None = None
        for axis, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if size > 1 and step:
                first = -1 - corner if labels is None else 0
                line = torch.arange(first, first - size * step, -step, device="cpu")
                if tensor.ndim > 1:
                    line = line.reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])
                labels = line if labels is None else labels + line
        if labels is None:
            return torch.full((1,) * tensor.ndim, -1 - corner, device="cpu")
        return labels

    def weight(self, tensor: Tensor) -> Weight | None:
        """What a view of a parameter is; None for a tensor that is none."""
        entry = self.of(tensor)
        if entry is None:
            return None
        turned = _turned(entry.shape)
        if geometry(tensor) in (entry.shape, turned):
            found = self._wholes.get(key := (entry.name, geometry(tensor) == turned))
            if found is None:
                found = self._wholes[key] = self._view(entry, tensor)
            return found
        return self._view(entry, tensor)

    def _view(self, entry: Entry, tensor: Tensor) -> Weight:
        sizes, strides, _ = entry.shape
        # Axes of length 1 of a matrix could be either.
        plain = (len(sizes) > 2 or min(sizes) > 1) and strides == _row_major(sizes)
        if plain and geometry(tensor) in (entry.shape, _turned(entry.shape)):
            axes = tuple(Axis(a, self._counted(n)) for a, n in enumerate(sizes))
            as_it_lies = geometry(tensor) == entry.shape
            return Weight(entry.name, axes if as_it_lies else axes[::-1], as_it_lies)
        lines = [
            torch.arange(size, device="cpu") * step + int(tensor.storage_offset())
            for size, step in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        return _weight(entry, tuple(tensor.shape), lines)

    def _counted(self, length: int) -> Tensor:
        """Whole numbers from zero on, which many axes have as their positions."""
        if length not in self._counts:
            self._counts[length] = torch.arange(length, device="cpu")
        return self._counts[length]

    def copy(self, shape: tuple[int, ...], labels: Tensor) -> Weight | None:
        """What a tensor with labels of its own is, where these are one parameter's entries."""
        if labels.numel() == 0 or bool((labels >= 0).any()):
            return None
        if int(labels.min()) < -self.total:
            return None  # computed from parameters
        found = self.at(-1 - labels)
        if bool((found != found.flatten()[0]).any()):
            return None
        entry = self.entries[int(found.flatten()[0])]
        place = -1 - labels - entry.first
        lines = []
        together = place.new_zeros(())
        corner = place.flatten()[0]
        for axis in range(place.ndim):
            line = place.movedim(axis, -1).reshape(-1, place.shape[axis])[0]
            view = [-1 if i == axis else 1 for i in range(place.ndim)]
            together = together + (line - corner).reshape(view)
            lines.append(line.expand(shape[axis]))
        if not torch.equal((together + corner).expand_as(place), place):
            return None
        return _weight(entry, shape, lines)

    def axes(self, layer: str) -> dict[str, int]:
        """The axes of a layer's weight that its inputs and its outputs run along."""
        module = self.modules[layer]
        turned = isinstance(module, TRANSPOSED) or getattr(view_of(module), "transposed", False)
        return {"in": 0, "out": 1} if turned else {"in": 1, "out": 0}

    def reader(self, name: str) -> str | None:
        """The linear layer that shares an embedding's table, by the table's name; or None."""
        linear = (n.rpartition(".")[0] for n in self.tied.get(name, ()))
        return next((m for m in linear if isinstance(self.modules[m], LAYERS)), None)

    def owner(self, name: str) -> str | None:
        """The layer whose own weight a parameter is, or None."""
        if name not in self._owners:
            module, _, leaf = name.rpartition(".")
            found = self.modules[module] if leaf == "weight" else None
            known = isinstance(found, LAYERS) or (found is not None and view_of(found) is not None)
            self._owners[name] = module if known else None
        return self._owners[name]


def _row_major(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps whose last axis is innermost."""
    return tuple(math.prod(sizes[a + 1 :]) for a in range(len(sizes)))


def _turned(shape: Geometry) -> Geometry:
    """A matrix's geometry when it is transposed; any other's as it is."""
    sizes, strides, offset = shape
    return (sizes[::-1], strides[::-1], offset) if len(sizes) == 2 else shape


def _tied(
    modules: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]
) -> dict[str, tuple[str, ...]]:
    """{the name of a table: all its names} of tables that embeddings and linear layers share.

    The table is the first embedding's, whose columns are channels; its rows, tokens, never are.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for prefix, module in modules.items():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((f"{prefix}.{leaf}", module))
    first = {id(p): name for name, p in parameters.items()}
    found = {}
    for key, own in owners.items():
        known = all(isinstance(module, nn.Embedding | nn.Linear) for _, module in own)
        if len(own) > 1 and known and any(isinstance(m, nn.Embedding) for _, m in own):
            found[first[key]] = tuple(name.removeprefix(".") for name, _ in own)
    return found


def _weight(entry: Entry, shape: tuple[int, ...], lines: list[Tensor]) -> Weight:
    sizes = entry.shape[0]
    axes: list[Axis | None] = []
    for line in lines:
        index = entry.index(line)
        moving = [a for a, i in enumerate(index) if len(i) and bool((i != i[0]).any())]
        axes.append(Axis(moving[0], index[moving[0]]) if moving else None)
    taken = {axis.axis for axis in axes if axis is not None}
    left = [a for a in range(len(sizes)) if a not in taken]
    free = [b for b, axis in enumerate(axes) if axis is None and shape[b] == 1]
    if len(axes) == len(sizes) == len(left) + len(taken):
        # Axes of length 1 could be any: a matrix product reads a layer's weight transposed.
        for b, a in zip(free, reversed(left) if len(axes) == 2 else left, strict=False):
            place = entry.index(lines[b])[a]
            axes[b] = Axis(a, place)
    whole = shape == sizes and all(
        axis is not None and axis.axis == b and len(axis.index) == sizes[b]
        for b, axis in enumerate(axes)
    )
    return Weight(entry.name, tuple(axes), whole)


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def layer_names(model: nn.Module) -> list[str]:
    """Names of all modules whose weight is a matrix that we know, and of recurrent weights."""
    return [*_single(model), *(n for n, w in weights_of(model).items() if _recurrent(w.module))]


def _single(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, LAYERS) or view_of(module) is not None
    ]


def _recurrent(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase | nn.RNNCellBase)


def computed_weight(module: nn.Module) -> str | None:
    """Why a layer's weight cannot be followed where it is no parameter of its own but made anew for
    each pass, with the cure; else None."""
    if nn.utils.parametrize.is_parametrized(module, "weight"):
        cure = "torch.nn.utils.parametrize.remove_parametrizations"
    elif "weight" not in module._parameters and hasattr(module, "weight"):
        cure = "remove_weight_norm or remove_spectral_norm of torch.nn.utils"
    else:
        return None
    return f"its weight is computed in the forward pass; make it a parameter by {cure}"


def twins(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Parameters and buffers that share memory with another one, each with that other's name.

    The same module under two names is one module, and its parameters are no twins: `modules` are
    those of a model by their first names.
    """
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    for prefix, module in modules.items():
        own = [*module._parameters.items(), *module._buffers.items()]
        for leaf, tensor in own:
            if tensor is None or not _plain(tensor) or tensor.numel() == 0:
                continue
            name = f"{prefix}.{leaf}" if prefix else leaf
            place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
            if place in first:
                shared[name] = first[place]
                shared.setdefault(first[place], name)
            else:
                first[place] = name
    return shared
