"""Operations below autograd as they run, told to all that follow a run through one mode of torch.

A mode costs several microseconds for every operation, and each mode inside it as much again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from prunus.ambient import states

__all__ = ["Follower", "Operations", "Ran", "Schema", "followed", "tensors_in"]

Arguments = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Schema:
    """What an operation's schema says; asking torch takes longer than many operations do.

    Attributes:
        operation: the overload.
        space: the library that it belongs to, such as "aten".
        name: its name there, without its overload.
        short: both, with the name of the one that is not in place: "aten.add".
        arguments: names.
        positional: names of those that need not be named.
        mutable: whether it writes to any of them.
        written: names of those.
        in_place: whether it does so by its name, and not by `out=`.
        composite: whether torch has no kernel for it, but makes it of other operations.
        seeded: whether it may draw random numbers.
    """

    operation: OpOverload
    space: str
    name: str
    short: str
    arguments: tuple[str, ...]
    positional: tuple[str, ...]
    mutable: bool
    written: tuple[str, ...]
    in_place: bool
    composite: bool
    seeded: bool

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(operation: OpOverload) -> "Schema":
        """Of an overload."""
        schema = operation._schema
        space, _, name = schema.name.partition("::")
        in_place = name.endswith("_")
        plain = name[:-1] if schema.is_mutable and in_place and not name.endswith("__") else name
        written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        return Schema(
            operation=operation,
            space=space,
            name=name,
            short=f"{space}.{plain}",
            arguments=tuple(a.name for a in schema.arguments),
            positional=tuple(a.name for a in schema.arguments if not a.kwarg_only),
            mutable=schema.is_mutable,
            written=tuple(written),
            in_place=in_place,
            composite=torch._C._dispatch_has_kernel_for_dispatch_key(
                operation.name(),  # type: ignore[no-untyped-call]
                "CompositeImplicitAutograd",
            ),
            seeded=torch.Tag.nondeterministic_seeded in operation.tags,
        )

    def named(self, args: Arguments, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name; those left to their defaults are not among them."""
        return {**dict(zip(self.arguments, args, strict=False)), **kwargs}


class Ran(NamedTuple):
    """An operation that has run.

    Attributes:
        schema: of it.
        args: as they were given.
        kwargs: likewise.
        inputs: the tensors among them.
        result: what it gave.
        drew: whether it has drawn random numbers from the process's own generators.
    """

    schema: Schema
    args: Arguments
    kwargs: dict[str, Any]
    inputs: list[Tensor]
    result: Any
    drew: bool


@runtime_checkable
class Follower(Protocol):
    """Who is told of operations."""

    def ran(self, call: Ran) -> None:
        """Take in an operation that has run."""


Run = Callable[[Schema, Arguments, dict[str, Any], list[Tensor]], Any]


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operation, and tells its followers.

    An operation that torch makes of others (which come by themselves, but for inference mode) is
    taken apart first.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler (seconds) at the first operation

    def __init__(self, run: Run | None = None) -> None:
        """`run` makes the calls, where it is not the operations themselves that do."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run
        self._followers: list[Follower] = []

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: Arguments = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        schema = Schema.of(func)
        if schema.composite:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        inputs = tensors_in((args, kwargs))
        before = states() if schema.seeded else []
        result = self._run(schema, args, kwargs, inputs) if self._run else func(*args, **kwargs)
        drew = schema.seeded and not all(map(torch.equal, before, states()))
        call = Ran(schema, args, kwargs, inputs, result, drew)
        for follower in self._followers:
            follower.ran(call)
        return result


@contextmanager
def followed(follower: Follower) -> Iterator[None]:
    """While open, every operation of this thread is told of, through a mode that is there or one
    of its own."""
    there = _get_current_dispatch_mode()
    if not isinstance(there, Operations):
        with Operations() as mode:
            mode._followers.append(follower)
            yield
        return
    there._followers.append(follower)
    try:
        yield
    finally:
        there._followers.remove(follower)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among the arguments or results of an operation."""
    found: list[Tensor] = []
    _gather(value, found)
    return found


def _gather(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for part in value:
            _gather(part, found)
    elif isinstance(value, dict):
        for part in value.values():
            _gather(part, found)
