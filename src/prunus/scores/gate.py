"""Scores of nodes by a gate: what closing a channel does to the loss, or to the outputs."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from prunus.calibration.statistics import GateCurvature, Statistic
from prunus.check import unknown
from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.scores.protocol import Score

__all__ = ["Gate", "Taylor", "Taylor2017"]

TARGETS = ("loss", "output")
LOSSES = ("cross-entropy", "squared-error")


@dataclass(frozen=True)
class Taylor(Score):
    """E t², t = Σ a ∂L/∂a: the squared first-order change of a sample's loss where the node goes.

    The published gate stands on batch norm's output and squares means over mini-batches; here it
    stands where the consumers read, and samples are squared, so that the loader's batches do not
    matter.

    References:
        Molchanov et al. (2019), Importance estimation for neural network pruning, Eq. 8.
    """

    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ("gate",)

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Squared changes of the loss, float64."""
        return view.statistic("gate")[2]


@dataclass(frozen=True)
class Taylor2017(Score):
    """E|t|, t = Σ a ∂L/∂a, over its Euclidean norm in the group.

    The paper averages t over positions, which is one factor for a whole group and cancels.

    References:
        Molchanov et al. (2017), Pruning convolutional neural networks for resource efficient
        inference, Eqs. 8 and 9.
    """

    serves: ClassVar[tuple[str, ...]] = (NODES,)
    statistics: ClassVar[tuple[str, ...]] = ("gate",)

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Shares of a vector of length 1, float64; zeros where no node moves the loss."""
        change = view.statistic("gate")[1]
        length = float(change.norm())
        return change / length if length > 0 else change


@dataclass(frozen=True)
class Gate(Score):
    """Second-order change of the loss, or squared change of the outputs, along a gate on the node.

    Neither needs labels, and both are in units of the whole network, so that groups are compared
    directly: take `Global()`. ½ E tᵀ ∇²ℓ t is the loss's exact second derivative along the gate for
    networks of piecewise linear parts, what the node's weights do together included; E Σ_o t_o² is
    its twin for the outputs.

    Attributes:
        of: "loss" or "output".
        loss: which, "cross-entropy" or "squared-error".

    References:
        derived in docs/second_order.md from LeCun, Denker, Solla (1989), Optimal brain damage.
    """

    of: Literal["loss", "output"] = "loss"
    loss: Literal["cross-entropy", "squared-error"] = "cross-entropy"
    serves: ClassVar[tuple[str, ...]] = (NODES,)

    def __post_init__(self) -> None:
        if self.of not in TARGETS:
            raise unknown("target of a gate", self.of, TARGETS)
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)

    @property
    def statistics(self) -> tuple[str | Statistic, ...]:
        """The second derivative of the loss that is meant, or the outputs' slopes."""
        if self.of == "output":
            return ("gate_output",)
        return ("gate_curvature",) if self.loss == LOSSES[0] else (GateCurvature(loss=self.loss),)

    def classes(self, view: ClassView) -> Float[Tensor, " classes"]:
        """Changes in units of the loss, or squared units of the output, float64."""
        if self.of == "output":
            return view.statistic("gate_output")
        return view.statistic("gate_curvature") / 2
