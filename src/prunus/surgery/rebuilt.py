"""Models of a class built from another configuration, without memory for their parameters."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.ambient import drawing, quiet
from prunus.modes import ATOMS, PARTS
from prunus.surgery.proof import DEPTH, seen

__all__ = [
    "Bare", "Blueprint", "Shapes", "check_config", "copied_config", "differences", "fields_of",
    "put_back", "put_fields", "shapes_of", "with_tensors",
]  # fmt: skip

Shapes = Mapping[str, torch.Size]
DRAWN = ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_",
         "xavier_uniform_", "xavier_normal_", "erfinv_")  # fmt: skip
MISSING: Any = object()
FEW = 2  # blocks of a list, of which it does not pay to build fewer


def shapes_of(module: nn.Module) -> Shapes:
    """The shapes of all stored tensors."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


class Bare(TorchFunctionMode):
    """Uninitialised tensors, as modules make them for their parameters, get no memory.

    Those that are like another one lie where it does: functions that draw values work with them.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        own = {**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}
        return func(*args, **own)


class _Undrawn(Bare):
    """Nor is anything drawn for parameters: it would be written over."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = args[0] if args else (kwargs or {}).get("tensor")
        if isinstance(given, nn.Parameter) and getattr(func, "__name__", "") in DRAWN:
            return given
        return super().__torch_function__(func, types, args, kwargs)


class Blueprint:
    """Which shapes the tensors of a class of models get by a configuration.

    Most of a large model are blocks that are all alike, so that one of each list is built before
    all are, where the configuration can ask for that.
    """

    def __init__(self, module: Any, before: Shapes) -> None:
        """`before` are the shapes that the module's configuration, as it is, stands for."""
        self._kind: Any = type(module)
        self._config = module.config
        self._counts: list[str] = []
        self._few = before  # shapes of a model with one block of each list
        self._known: dict[tuple[tuple[str, Any], ...], Shapes] = {}
        lengths = {len(m) for m in module.modules() if isinstance(m, nn.ModuleList)}
        for path, value in fields_of(module.config):
            if type(value) is not int or value <= FEW or value not in lengths:
                continue
            found = self._shapes(dict.fromkeys([*self._counts, path], 1))
            fewer = found.keys() < self._few.keys()
            if fewer and all(before[name] == shape for name, shape in found.items()):
                self._counts, self._few = [*self._counts, path], found

    def foresees(self, parts: Sequence[Mapping[str, Any]], after: Shapes) -> bool:
        """Whether changes of a configuration have these shapes, if none bears on another one's."""
        lengths = {name: list(shape) for name, shape in self._few.items()}
        for part in parts:
            key = tuple(part.items())
            if key not in self._known:
                self._known[key] = self._shapes({**part, **dict.fromkeys(self._counts, 1)})
            found = self._known[key]
            if found.keys() != lengths.keys():
                return False
            for name, shape in self._few.items():
                if len(found[name]) != len(shape):
                    return False
                for axis, (old, new) in enumerate(zip(shape, found[name], strict=True)):
                    if new != old:
                        lengths[name][axis] = new
        return all(after.get(name) == torch.Size(found) for name, found in lengths.items())

    def _shapes(self, change: Mapping[str, Any]) -> Shapes:
        """Shapes by a changed configuration; none where the class does not take it."""
        trial = copied_config(self._config)
        try:
            put_fields(trial, change)
            with torch.device("meta"), quiet(), _Undrawn():
                built: nn.Module = self._kind(trial)
        except Exception:  # whatever the library says
            return {}
        return shapes_of(built)

    def built(self, change: Mapping[str, Any], after: Shapes) -> nn.Module | None:
        """A model by a changed configuration, without memory for what its parameters are made of.

        None where its tensors have not the shapes `after`.
        """
        trial = copied_config(self._config)
        try:
            put_fields(trial, change)
            check_config(trial)
            with quiet(), _Undrawn():
                made: nn.Module = drawing([torch.default_generator], lambda: self._kind(trial))
        except Exception:  # whatever the library says
            return None
        return made if shapes_of(made) == dict(after) else None

    def may(self, change: Mapping[str, Any], after: Shapes) -> bool:
        """Whether the shapes of a model with one block of each list are those of the whole one."""
        if not self._counts:
            return True
        found = self._shapes({**change, **dict.fromkeys(self._counts, 1)})
        return found == {name: after.get(name) for name in self._few}


def check_config(config: Any) -> None:
    """Raise whatever the library says to values that it does not save, as `save_pretrained` does.

    A width that is no multiple of the heads is one, though a model of it can be built.
    """
    if hasattr(config, "validate"):
        config.validate()


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a configuration and of those inside it, by its path."""
    for key, value in vars(config).items():
        if key.startswith("_"):
            continue
        if hasattr(value, "to_dict"):
            yield from fields_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def put_fields(config: Any, change: Mapping[str, Any]) -> list[tuple[Any, str, Any]]:
    """Set fields, given by their paths; returns (owner, name, value before), for `put_back`.

    Classes look for fields that not every configuration declares.
    """
    before = []
    for path, value in change.items():
        *owners, leaf = path.split(".")
        home = config
        for owner in owners:
            home = getattr(home, owner)
        before.append((home, leaf, getattr(home, leaf, MISSING)))
        setattr(home, leaf, value)
    return before


def put_back(before: list[tuple[Any, str, Any]]) -> None:
    """Give attributes the values that they had, the last that was set first."""
    for home, name, value in reversed(before):
        if value is MISSING:
            delattr(home, name)
        else:
            setattr(home, name, value)


def copied_config(config: Any, memo: dict[int, Any] | None = None) -> Any:
    """What `copy.deepcopy` gives; at a tenth of it where tables of a thousand labels are in it."""
    memo = {} if memo is None else memo
    if id(config) in memo:
        return memo[id(config)]
    memo[id(config)] = new = copy.copy(config)
    for key, value in vars(config).items():
        if type(value) in ATOMS:
            continue
        if hasattr(value, "to_dict"):
            vars(new)[key] = copied_config(value, memo)
        elif type(value) is dict and all(type(v) in ATOMS for v in value.values()):
            vars(new)[key] = dict(value)
        else:
            vars(new)[key] = copy.deepcopy(value, memo)
    return new


def with_tensors(built: nn.Module, module: nn.Module) -> nn.Module:
    """A model that `Blueprint` has built, given another's numbers; its parameters share them."""
    state = module.state_dict()
    buffers = {name for name, _ in module.named_buffers()}
    built.load_state_dict(
        {k: v.clone() if k in buffers else v for k, v in state.items()}, assign=True
    )
    like: Tensor = next(module.parameters())
    for name, buffer in list(built.named_buffers()):
        if name not in state:
            owner, _, leaf = name.rpartition(".")
            dtype = like.dtype if buffer.is_floating_point() else buffer.dtype
            built.get_submodule(owner)._buffers[leaf] = buffer.to(like.device, dtype)
    return built


def differences(
    module: nn.Module, built: nn.Module, change: Mapping[str, Any]
) -> dict[tuple[str, str], int] | None:
    """{(module, attribute): number} that a model has otherwise than one built from a configuration.

    Args:
        module: a model with a configuration, and the tensors' shapes of the other.
        built: what its class makes of this configuration with some fields changed.
        change: these fields.

    Returns:
        With these numbers the two are one network, given the same stored tensors. None where they
        differ in anything else that a forward pass may read.
    """
    mine, theirs = list(module.named_modules()), list(built.named_modules())
    if [(n, type(m)) for n, m in mine] != [(n, type(m)) for n, m in theirs]:
        return None
    if not _same_tensors(module, built):
        return None
    expected = copied_config(module.config)
    put_fields(expected, change)
    configs = [_named_configs(m) for m in (module, built)]
    if seen(expected, {}, DEPTH) != seen(built.config, {}, DEPTH):
        return None
    known = [{**own, **{id(m): name for name, m in every}} for own, every in
             zip(configs, (mine, theirs), strict=True)]  # fmt: skip
    numbers: dict[tuple[str, str], int] = {}
    for (name, one), (_, other) in zip(mine, theirs, strict=True):
        own, wanted = vars(one), vars(other)
        if own.keys() != wanted.keys():
            return None
        for key, value in own.items():
            if key in PARTS or key == "training":
                continue
            new = wanted[key]
            if type(value) is int and type(new) is int and value != new:
                numbers[name, key] = new
            elif type(value) in ATOMS:
                if type(new) is not type(value) or new != value:
                    return None
            elif seen(value, known[0], DEPTH) != seen(new, known[1], DEPTH):
                return None
    return numbers


def _named_configs(module: Any) -> dict[int, str]:
    """The configuration of a model and those inside it, by identity."""
    found: dict[int, str] = {}

    def walk(config: Any, path: str) -> None:
        found.setdefault(id(config), path)
        for key, value in vars(config).items():
            if hasattr(value, "to_dict"):
                walk(value, f"{path}.{key}")

    walk(module.config, "config")
    return found


def _same_tensors(module: nn.Module, built: nn.Module) -> bool:
    """Whether both keep their tensors in the same places, and equal ones that are not stored."""
    stored = module.state_dict().keys()
    places = []
    for model in (module, built):
        named = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        first: dict[int, str] = {}
        places.append([(name, first.setdefault(id(t), name)) for name, t in named])
    if places[0] != places[1]:
        return False
    others = dict(built.named_buffers())
    return all(
        name in stored or _equal(buffer, others[name]) for name, buffer in module.named_buffers()
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or other.is_meta or one.layout != other.layout:
        return False
    return torch.equal(one, other.to(one))
