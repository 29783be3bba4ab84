"""The smaller network that was found equal to one with zeros, while that one stays as it is."""

import copy
from collections import OrderedDict
from dataclasses import dataclass, fields
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.coupling.example import arguments_of
from prunus.hints import Batch
from prunus.modes import ATOMS, PARTS, copied
from prunus.rows import checksum

__all__ = ["DEPTH", "Proof", "Seal", "proof_of", "seen"]

KEPT = 2**26  # entries of a smaller network that is remembered, at most: 256 MB in float32
OUTPUTS = 2**20  # entries of outputs that are remembered, at most
DEPTH = 12  # objects inside objects that are looked into


@dataclass(frozen=True, eq=False)
class Proof:
    """A smaller network and what it was compared with.

    Attributes:
        small: it.
        example: the batch on which both gave the same.
        rtol: to within which they did.
        inexact: whether norms could lose part of what their statistics run over.
        seal: the state of the network with zeros.
        gave: what the smaller one gives on the example; None where that is too much to remember.
        said: whether its configuration says its widths.
    """

    small: nn.Module
    example: Batch
    rtol: float
    inexact: bool
    seal: "Seal"
    gave: Any = None
    said: bool = False

    def serves(self, model: nn.Module, example: Batch, rtol: float, inexact: bool) -> bool:
        """Whether a comparison of this network on this example would be the one that was made."""
        asked = rtol >= self.rtol and inexact == self.inexact
        return asked and _alike(self.example, example) and self.seal == Seal.of(model)

    def network(self) -> nn.Module:
        """The smaller network, as a copy of its own."""
        return copied(self.small)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Proof":
        return Proof(**{f.name: copy.deepcopy(getattr(self, f.name), memo) for f in fields(self)})

    def __reduce__(self) -> Any:
        """Nothing, where a result goes to another process: it compares again."""
        return type(None), ()


def proof_of(
    model: nn.Module,
    small: nn.Module,
    example: Batch,
    gave: Any,
    *,
    rtol: float,
    inexact: bool,
    said: bool,
) -> Proof | None:
    """What is to be remembered of a comparison that held; None where that is too much."""
    if sum(parameter.numel() for parameter in small.parameters()) > KEPT:
        return None
    outputs = pytree.tree_leaves(gave)
    small_enough = all(isinstance(leaf, Tensor | None) for leaf in outputs) and (
        sum(leaf.numel() for leaf in outputs if leaf is not None) <= OUTPUTS
    )  # of other objects nobody knows what they hold
    kept = gave if small_enough else None
    return Proof(small, example, rtol, inexact, Seal.of(model), kept, said)


@dataclass(frozen=True)
class Seal:
    """Everything that a network's forward pass can read: equal where nothing has changed.

    Attributes:
        numbers: a checksum of all parameters and buffers.
        tensors: of each its name, the first name of it, its class, device, and whether it learns.
        modules: of each its class and its attributes, those of objects in them included.
    """

    numbers: str
    tensors: tuple[Any, ...]
    modules: tuple[Any, ...]

    @staticmethod
    def of(model: nn.Module) -> "Seal":
        """The seal of a network as it is now."""
        named = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        first: dict[int, str] = {}
        tensors = tuple(
            (name, first.setdefault(id(t), name), type(t), t.device, t.requires_grad)
            for name, t in named
        )
        own = {first[id(t)]: t for _, t in named}
        every = dict(model.named_modules())
        known: dict[int, Any] = {id(module): name for name, module in every.items()}
        modules = tuple((n, type(m), _attributes(m, known)) for n, m in every.items())
        return Seal(checksum(own), tensors, modules)


class _Same:
    """Code, or another object that does not change: it is equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self._value = value  # kept alive, so that no other one takes its place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]


class _Unknown:
    """What nobody can look into: it may have changed, and is equal to nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def _attributes(module: nn.Module, known: dict[int, Any]) -> tuple[Any, ...]:
    return tuple(
        (
            key,
            value
            if (kind := type(value)) in ATOMS
            else kind  # most are empty, and `seen` says the same
            if kind in EMPTY and not value
            else seen(value, known, DEPTH),
        )
        for key, value in vars(module).items()
        if key not in PARTS
    )


def seen(value: Any, known: dict[int, Any], depth: int) -> Any:
    """A value as it is now, to be compared with what it is later."""
    kind = type(value)
    if kind in ATOMS or kind in PLAIN:
        return value
    if kind in EMPTY and not value:
        return kind
    if isinstance(value, FIXED):
        return _Same(value)
    if isinstance(value, Tensor):  # such as a weight that a hook has worked out
        return checksum({"": value})
    if depth == 0:
        return _Unknown()
    if kind in (list, tuple, torch.Size):
        return kind, [seen(part, known, depth - 1) for part in value]
    if kind in (dict, OrderedDict):
        return kind, [(k, seen(v, known, depth - 1)) for k, v in value.items()]
    if kind in (set, frozenset):
        return kind, set(value)
    if id(value) in known:  # a module of the network, or a configuration that many share
        return known[id(value)]
    inside = getattr(value, "__dict__", None)
    if not isinstance(inside, dict) or hasattr(kind, "__slots__") or isinstance(value, CONTAINERS):
        return _Unknown()
    known[id(value)] = kind  # while it is looked into, where it may hold itself
    if isinstance(value, nn.Module):  # in a plain list, say
        known[id(value)] = Seal.of(value)
    else:
        known[id(value)] = (kind, seen(inside, known, depth - 1))
    return known[id(value)]


PLAIN = frozenset({torch.dtype, torch.device})
CONTAINERS = (list, tuple, set, frozenset, dict, OrderedDict)
EMPTY = frozenset(CONTAINERS)
FIXED = (FunctionType, BuiltinFunctionType, MethodType, partial, type, Enum, ref)


def _alike(one: Any, other: Any) -> bool:
    """Whether two batches are the same, in every value."""
    (those, form), (these, other_form) = (
        pytree.tree_flatten(arguments_of(x)) for x in (one, other)
    )
    return form == other_form and all(map(_equal, those, these))


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return (
            type(one) is type(other) and isinstance(one, bool | int | float | str) and one == other
        )
    where = (one.device, one.dtype, one.layout) == (other.device, other.dtype, other.layout)
    return where and one.layout == torch.strided and torch.equal(one, other)
