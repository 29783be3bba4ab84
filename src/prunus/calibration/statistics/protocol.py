"""What a statistic is: what it reads, how its sums are made and merged, and what they become."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Axis, Layer

__all__ = [
    "ClassSlopes", "Matrix", "Pair", "Reads", "SampleSlopes", "Signal", "Source", "Statistic",
    "Vectors",
]  # fmt: skip

Source = Literal[
    "inputs",  # `Vectors`: the input vectors of a layer
    "outputs",  # `Vectors`: its outputs
    "pair",  # `Pair`: its inputs in the dense model, beside those in the pruned one
    "gradient",  # `Matrix`: ∂L/∂W of the loss of a batch, times its number of samples
    "slopes",  # `SampleSlopes`: for every sample, what a signal at the outputs sends back
    "classes",  # `ClassSlopes`: for every sample, the slope along a gate on each channel class
    "hessian",  # `Matrix`: H g, Hessian times gradient of the mean loss over all data
    "weights",  # `Matrix`: the flow through the weights alone, without data
]
Signal = Literal["loss", "output", "softmax", "square"]


@dataclass(frozen=True)
class Reads:
    """What a statistic reads, and what follows from that.

    Attributes:
        source: what `add` is given; see `Source`.
        axis: what the first axis of the sums runs over: convolution groups ("group") or rows of
            the weight ("out"). Statistics of channel classes have the classes there: "out".
        signal: for the sources "slopes" and "classes", what is sent back through the network: the
            gradient of every sample's `loss`, every `output` in turn, or the columns of a root of
            the loss's second derivative in the outputs, of cross-entropy (`softmax`) or of the
            squared error (`square`).
        merges: False where the whole is no function of its parts, so that calibrations on
            different data cannot be added.
        covers: other statistics that can be read off this one, and need not be collected beside it.
        inputs_only: True where `add` reads nothing of the layer, so that layers which take the same
            inputs have the same sums.
    """

    source: Source
    axis: Axis
    signal: Signal = "loss"
    merges: bool = True
    covers: tuple[str, ...] = ()
    inputs_only: bool = False

    @property
    def sequential(self) -> bool:
        """True where it can be made from the inputs that a pruned predecessor gives.

        Those that look at the whole network (gradients, flow) are the dense model's throughout.
        """
        return self.source in ("inputs", "outputs", "pair")


@dataclass(frozen=True, eq=False)
class Vectors:
    """A block of input (or output) vectors of one layer, and their sum."""

    values: Float[Tensor, "positions groups width"]
    total: Float[Tensor, "groups width"]


@dataclass(frozen=True, eq=False)
class Pair:
    """The same block of inputs in the dense and in the pruned model."""

    dense: Vectors
    pruned: Vectors


@dataclass(frozen=True, eq=False)
class Matrix:
    """One number per weight."""

    values: Float[Tensor, "out in"]


@dataclass(frozen=True, eq=False)
class SampleSlopes:
    """Input vectors of single samples, and what one signal sends back to the outputs.

    The gradient with respect to W of sample n is Σ over positions of slope ⊗ input; the dtype is
    the model's (float32 where that is narrower).
    """

    inputs: Float[Tensor, "samples positions groups in"]
    slopes: Float[Tensor, "samples positions groups rows"]


@dataclass(frozen=True, eq=False)
class ClassSlopes:
    """∂/∂(gate on class c) of what one signal weighs, for every sample, float64."""

    values: Float[Tensor, "samples classes"]


@runtime_checkable
class Statistic(Protocol):
    """What calibration can collect of a layer (or of a group of channel classes).

    A frozen dataclass with these members needs no registration: `calibrate` takes instances, and
    one that subclasses this has the members with a default. Sums are float64 tensors of the
    caller's; `add` may change the one it is given in place.
    """

    @property
    def name(self) -> str:
        """The key under which a layer holds it."""
        ...

    @property
    def reads(self) -> Reads:
        """What `add` is given, and the layout of the sums."""
        ...

    def add(self, total: Tensor | None, reading: Any, layer: Layer) -> Tensor:
        """The sums with one more reading in them; None stands for no reading yet.

        Args:
            total: what the last call gave, or None.
            reading: of the type that `reads.source` names.
            layer: the layer without statistics; for channel classes, one of the consumers.
        """
        ...

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        """The sums over two sets of data, neither changed; they add up, if not said else."""
        return one + other

    def finish(self, total: Tensor, count: int) -> Tensor:
        """The statistic from its sums; their mean, if not said else.

        Args:
            total: of shape (groups, …) even where there is one group.
            count: of vectors for inputs, outputs and pairs; of samples for everything else.
        """
        return total / count

    def numbers(self, out: int, wide: int, groups: int) -> int:
        """How many numbers the sums take; nothing larger than the memory limit is begun.

        Args:
            out: rows of the layer's weight; for channel classes, their number.
            wide: its columns; for channel classes, their number.
            groups: convolution groups.
        """
        ...
