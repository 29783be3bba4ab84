"""How the weights of a module are matrices W (out × in), and what their input vectors are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["Inputs", "Matrix", "ModuleView", "Unclear", "View", "first_argument"]


class Unclear(ValueError):
    """A mask that does not say which of a layer's input vectors are padding."""


# What a module is called with -> what the matrix multiplies, or None where it cannot be told.
Inputs = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Tensor | None]

# A parameter's name and what it multiplies -> that through a gate, a factor for every sample.
Through = Callable[[str, Tensor], Tensor]
# The module, the arguments of its call, and its gates -> what it gives.
Gated = Callable[[Any, tuple[Any, ...], Mapping[str, Any], Through], Any]


@runtime_checkable
class View(Protocol):
    """How one weight is a matrix, and what its input vectors are."""

    def matrix(self, module: Any, values: Tensor) -> Shaped[Tensor, "out in"]:
        """The weight (or its gradient, or its mask) as (out, in); may share memory with it."""
        ...

    def parameter(self, module: Any, matrix: Shaped[Tensor, "out in"]) -> Tensor:
        """A matrix in the shape and order of the module's weight."""
        ...

    def vectors(self, module: Any, inputs: Tensor) -> Float[Tensor, "positions groups in"]:
        """The input vectors that W multiplies, one row per sample and position."""
        ...

    def responses(self, module: Any, outputs: Tensor) -> Float[Tensor, "positions groups out"]:
        """The outputs (or their gradients), a row for each row of `vectors`."""
        ...

    def channels(self, module: Any, inputs: Tensor) -> Tensor:
        """The inputs with positions before channels, as `attention_mask` counts them."""
        ...


def first_argument(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What a layer with one input is called with."""
    del module
    inputs = args[0] if args else next(iter(kwargs.values()), None)
    return inputs if isinstance(inputs, Tensor) else None  # else the module says what it needs


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One of a module's weights as a matrix.

    Attributes:
        parameter: its name within the module, such as "weight", "in_proj_weight" or
            "out_proj.weight".
        view: the order of its axes, and its input vectors.
        index: for a stack of matrices in one parameter, the place along its first axis.
        bias: name of the parameter that holds its bias, or None.
        rows: the bias' own entries of that parameter; all where None.
        groups: blocks of rows with inputs of their own, as the groups of a convolution.
        taps: kernel entries per input channel.
        inputs: the tensor for `view.vectors`, from the arguments of the module's call.
        unseen: what it means where `inputs` gives None, so that no statistics can be collected:
            such a weight serves recipes without statistics alone.
        alone: whether the module's output is W x + b of this weight alone.
        gated: where it is not, what the module gives when weights of it read through gates, or
            None where that is not known.
        hidden: whether no call of its module ever shows what it multiplies.
        on_request: whether it is pruned only where `layers` selects it by a name or glob.
    """

    parameter: str = "weight"
    view: View
    index: int | None = None
    bias: str | None = "bias"
    rows: slice | None = None
    groups: int = 1
    taps: int = 1
    inputs: Inputs = first_argument
    unseen: str = (
        "its module was called without a tensor that it multiplies, or under torch.func or vmap"
    )
    alone: bool = True
    gated: Gated | None = None
    hidden: bool = False
    on_request: bool = False

    @property
    def sloped(self) -> bool:
        """Whether slopes of single samples along its columns can be told."""
        return self.alone or self.gated is not None


@runtime_checkable
class ModuleView(Protocol):
    """Which matrices a module with several weights holds."""

    def matrices(self, module: Any) -> Sequence[Matrix]:
        """The prunable weights, in the order of the module's parameters."""
        ...
