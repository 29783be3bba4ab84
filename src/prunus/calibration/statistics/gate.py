"""How the loss answers to closing a channel class."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.calibration.statistics.protocol import ClassSlopes, Reads, Statistic
from prunus.layer import Layer

__all__ = ["Gate"]


@dataclass(frozen=True)
class Gate(Statistic):
    """E t, E|t| and E t² over samples, (3, classes), of a gate on every class of a group.

    t_c(n) = Σ_positions a_c ∂L_n/∂a_c is the derivative of sample n's loss along a gate on what the
    consumers read of class c, all of them together; it equals the column sum of W ∘ ∂L_n/∂W over
    the class's members.

    References:
        Molchanov et al. (2017), Pruning convolutional neural networks for resource efficient
        inference, Eq. 8 (E|t|); Molchanov et al. (2019), Importance estimation, Eq. 8 (E t², there
        of mini-batches, here of samples).
    """

    name: ClassVar[str] = "gate"
    reads: ClassVar[Reads] = Reads(source="classes", axis="out", signal="loss")

    def add(self, total: Tensor | None, reading: ClassSlopes, layer: Layer) -> Tensor:
        t = reading.values
        value = torch.stack([t.sum(0), t.abs().sum(0), t.square().sum(0)])
        return value if total is None else total + value

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return 3 * wide
