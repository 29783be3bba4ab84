"""What a rule is given, and what it may say: the protocol between the trace and its rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch._ops import OpOverload

from prunus.coupling.labels import Labels
from prunus.coupling.types import Heads, Role
from prunus.coupling.weights import Weight

__all__ = ["Call", "Refused", "Rule", "Trace", "spread"]


class Refused(Exception):
    """An operation through which channels cannot be followed; its text is the reason."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation that has run.

    Attributes:
        operation: the overload that ran.
        name: "aten.add" for any overload of it, also for the one in place.
        arguments: its arguments by the names of its schema.
        outputs: the tensors that it gave, new or written in place.
    """

    operation: OpOverload
    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[Tensor, ...]

    @property
    def out(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    def get(self, *names: str) -> Any:
        """The first of these arguments that the operation has."""
        for name in names:
            if name in self.arguments:
                return self.arguments[name]
        return None

    def tensors(self) -> list[Tensor]:
        """All tensor arguments, those in lists included."""
        found: list[Tensor] = []
        for value in self.arguments.values():
            parts = value if isinstance(value, list | tuple) else (value,)
            found += [part for part in parts if isinstance(part, Tensor)]
        return found


@runtime_checkable
class Trace(Protocol):
    """What a rule may ask of the trace, and tell it."""

    labels: Labels
    heads: Heads

    def read(self, tensor: Tensor) -> Tensor:
        """Labels of a tensor, of length 1 along axes on which they are equal."""

    def read_statistics(self, tensor: Tensor) -> Tensor:
        """As `read`, for a rule that knows what to do with statistics; `read` refuses them."""

    def atoms(self, tensor: Tensor) -> Tensor | None:
        """Labels of the entries of a view or copy of a parameter; None for anything else."""

    def weight(self, tensor: Tensor) -> Weight | None:
        """The parameter that a tensor is a view or copy of, or None; Refused where it is shared."""

    def fixed(self, tensor: Tensor) -> bool:
        """True for constants of the model's code and its buffers, which no input changes."""

    def tied(self, weight: Weight) -> str | None:
        """The linear layer that reads this table, which is an embedding's; None for all others."""

    def table(self, weight: Weight) -> Tensor:
        """Classes of a table's columns, rows of which are looked up by number."""

    def computed(self, one: Tensor, other: Tensor | None = None) -> Tensor:
        """Labels of values computed from entries of one or two parameters, position by position."""

    def name_of(self, weight: Weight) -> str:
        """Name of the layer whose weight this is, or its own; Refused where nothing learns it."""

    def used(self, role: Role, weight: Weight, labels: Tensor) -> None:
        """Say that a product reads ("in") or makes ("out") classes by a weight.

        That is its layer's, or a parameter that the code multiplies by without one; a buffer
        counts for neither.
        """

    def member(self, parameter: str, axis: int, role: str, index: Tensor, labels: Tensor) -> None:
        """Say that slice `index[i]` of a parameter along `axis` belongs to `labels[i]`."""

    def made(self, weight: Weight, axis: int) -> Tensor:
        """One class for each position of a view's axis, the same at every use of a parameter."""

    def layer(self, kind: str, module: str, labels: Tensor) -> None:
        """Say that a module is a "producer", "consumer" or "norm" of classes."""

    def attends(self, queries: Tensor, shared: Tensor) -> None:
        """Say that these are heads: labels of queries, and of the keys or values each reads."""

    def norm(self, tensor: Tensor, labels: Tensor) -> None:
        """Say that the module that owns this parameter is a norm of the classes."""

    def pin(self, tensor: Tensor, reason: str) -> None:
        """Say why no slice of the parameter behind a tensor may go."""


Rule = Callable[[Trace, Call], Tensor | tuple[Tensor, ...]]


def spread(labels: Tensor, axis: int, ndim: int) -> Tensor:
    """One label per position along `axis`, the same on all other axes."""
    return labels.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])
