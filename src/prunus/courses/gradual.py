"""Gradual pruning: the density falls along a power of the training that is left."""

from dataclasses import dataclass

from prunus.check import positive, whole
from prunus.courses.protocol import Course, in_unit_order

__all__ = ["Gradual"]


@dataclass(frozen=True)
class Gradual(Course):
    """From all weights to the density d as d + (1 − d) (1 − (u − start) / (stop − start))^power.

    u is the share of the training that is done. Removed weights stay away, or, with `soft`, go on
    learning behind the mask and come back where they have outgrown others. Let `stop` come while
    the learning rate is still high: what is removed later is not recovered.

    Attributes:
        start: share of the training before which all weights stay.
        stop: share by which the density is reached.
        every: optimizer steps between two changes of the masks.
        power: 3 falls fast at first, 1 evenly.
        soft: removed weights are kept in a copy, get the gradients of the masked network, and
            compete at every change (a straight-through estimate).

    References:
        Zhu and Gupta (2018), To prune, or not to prune: exploring the efficacy of pruning for model
        compression, Eq. 1, there of the sparsity 1 − d; `soft` as in He et al. (2018), Soft filter
        pruning for accelerating deep convolutional neural networks, section 3.3.
    """

    start: float = 0.1
    stop: float = 0.7
    every: int = 100
    power: float = 3.0
    soft: bool = False

    def __post_init__(self) -> None:
        in_unit_order("Gradual", self.start, self.stop)
        whole("every", self.every, low=1)
        positive("power", self.power)

    def density(self, share: float, final: float) -> float:
        """Kept / total."""
        if share <= self.start:
            return 1.0
        if share >= self.stop:
            return final
        left = 1.0 - (share - self.start) / (self.stop - self.start)
        return float(final + (1.0 - final) * left**self.power)
