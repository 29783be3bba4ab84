"""The sizes of a model's parts, from which the cost of any plan follows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.cost.files import type_name
from prunus.cost.operations import Operations, count_operations
from prunus.ranking import count_true
from prunus.weights import Weight, weights_of
from prunus.zeros import PIECE, beside_zero

__all__ = ["Anatomy", "anatomy"]

FIRST = 8  # slices looked at first


@dataclass(frozen=True, eq=False, kw_only=True)
class Anatomy:
    """The sizes of a model's parts.

    Attributes:
        shapes: shape of every parameter and buffer by name, tensors in several places once.
        parameters: names that are parameters and no buffers.
        stored: {key of the state_dict: type}; a tensor in several places is stored at each.
        filled: entries of each tensor in `shapes` that are not zero.
        boxes: along each axis of a tensor with zeros, the number of slices that are not all zero.
        tied: {name: the name in `shapes`} of tensors that stand in several places.
        weights: {layer: (its parameter, whether it is one matrix of a stack there)}, for all
            layers with a view.
        homes: {layer: other names that mean it}, see `Weight.homes`.
        layers_filled: entries of each layer's weight that are not zero.
        operations: the multiply-adds of one sample, or None if nothing was run.
        order: names of the layers in the order in which their modules ran.
    """

    shapes: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]
    stored: Mapping[str, str]
    filled: Mapping[str, int]
    boxes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    homes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layers_filled: Mapping[str, int] = field(default_factory=dict)
    operations: Operations | None = None
    order: tuple[str, ...] = ()

    def home(self, name: str) -> str:
        """The name in `shapes` of a tensor."""
        return self.tied.get(name, name)

    def weight_of(self, layer: str) -> str:
        """The name in `shapes` of the parameter that holds a layer's weight."""
        plain = layer if layer in self.shapes or layer in self.tied else f"{layer}.weight"
        path, _ = self.weights.get(layer, (plain, False))
        return self.home(path)

    def weight_shape(self, layer: str) -> tuple[int, ...]:
        """The shape of a layer's weight, kernel axes included."""
        shape = self.shapes[self.weight_of(layer)]
        return shape[1:] if self.weights.get(layer, ("", False))[1] else shape

    def filled_of(self, layer: str) -> int:
        """Entries of a layer's weight that are not zero, or of a parameter without a layer."""
        known = self.layers_filled.get(layer)
        return self.filled[self.weight_of(layer)] if known is None else known

    def weight_entries(self, layers: Sequence[str]) -> int:
        """Number of entries of the layers' weights."""
        return sum(math.prod(self.weight_shape(name)) for name in layers)


def anatomy(
    model: nn.Module,
    run: Callable[[], int] | None = None,
    *,
    count: bool = True,
    known: Mapping[str, Weight] | None = None,
) -> Anatomy:
    """The sizes of `model`; `run` makes one forward call and returns its number of samples.

    Products are left out of that call where nothing in it asks for them; see `by_shapes`.

    Without `count` zeros are not looked for: what is said is what a network without any has.
    `known` is what `weights_of` says.
    """
    entries: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    named: list[tuple[str, Tensor, bool]] = [
        *((n, p, True) for n, p in model.named_parameters(remove_duplicate=False)),
        *((n, b, False) for n, b in model.named_buffers(remove_duplicate=False)),
    ]
    parameters = set()
    for name, tensor, is_parameter in named:
        if id(tensor) in first:
            if name not in entries:
                tied[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        entries[name] = tensor
        if is_parameter:
            parameters.add(name)
    state = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    entries.update({k: v for k, v in state.items() if k not in entries and k not in tied})
    found = weights_of(model) if known is None else known
    weights = {
        n: (w.path, w.source.index is not None)
        for n, w in found.items()
        if w.path in entries or w.path in tied  # else it is computed from other tensors
    }
    filled = {n: _filled(t) if count else t.numel() for n, t in entries.items()}
    operations: Operations | None = None
    order: tuple[str, ...] = ()
    if run is not None:
        layers: dict[nn.Module, list[str]] = {}
        for name in weights:
            layers.setdefault(found[name].module, []).append(name)
        operations, order = _run(model, run, layers)
    return Anatomy(
        shapes={n: tuple(t.shape) for n, t in entries.items()},
        parameters=frozenset(parameters),
        stored={key: type_name(value.dtype) for key, value in state.items()},
        filled=filled,
        boxes={n: _box(t) for n, t in entries.items() if filled[n] < t.numel()},
        tied=tied,
        weights=weights,
        homes={n: found[n].homes for n in weights},
        layers_filled={
            n: _filled_of(found[n].matrix(), entries[home], filled[home], count=count)
            for n, (path, _) in weights.items()
            for home in (tied.get(path, path),)
        },
        operations=operations,
        order=order,
    )


def _run(
    model: nn.Module, run: Callable[[], int], layers: Mapping[nn.Module, Sequence[str]]
) -> tuple[Operations, tuple[str, ...]]:
    """What one call multiplies, and the layers in the order in which it reached them."""
    order: dict[str, None] = {}
    handles = []

    def hook_for(names: Sequence[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            order.update(dict.fromkeys(names))

        return hook

    def reached() -> int:
        order.clear()
        return run()

    try:
        for module, names in layers.items():
            handles.append(module.register_forward_pre_hook(hook_for(names)))
        return count_operations(model, reached, outputs=False), tuple(order)
    finally:
        for handle in handles:
            handle.remove()


def _filled(tensor: Tensor) -> int:
    if tensor.is_meta:
        return tensor.numel()
    plain = tensor.layout == torch.strided and tensor.dtype in (torch.float32, torch.float64)
    if plain and tensor.numel() > PIECE and tensor.is_contiguous():
        pieces = torch.split(tensor.detach().view(-1), PIECE)
        return sum([count_true(beside_zero(piece)) for piece in pieces])
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # torch counts no float8
    return int(torch.count_nonzero(tensor))


def _filled_of(matrix: Tensor, parameter: Tensor, filled: int, *, count: bool) -> int:
    """Entries beside zero of a layer's matrix, counted already where it is the whole parameter."""
    if not count:
        return matrix.numel()
    return filled if matrix.numel() == parameter.numel() else _filled(matrix)


def _box(tensor: Tensor) -> tuple[int, ...]:
    """Slices along each axis that are not all zeros; in most, the first entries tell."""
    values = tensor.detach()
    if values.ndim < 2:
        return (_filled(values),) * values.ndim
    return tuple(count_true(_some(values, axis)) for axis in range(values.ndim))


def _some(values: Tensor, axis: int) -> Tensor:
    """True for the slices along an axis that have an entry beside zero."""
    found = torch.zeros(values.shape[axis], dtype=torch.bool, device=values.device)
    along = 0 if axis else 1
    start, count = 0, FIRST
    while start < values.shape[along] and not bool(found.all()):
        part = values.narrow(along, start, min(count, values.shape[along] - start)) != 0
        found |= part.movedim(axis, 0).flatten(1).any(1)
        start, count = start + count, 2 * count
    return found
