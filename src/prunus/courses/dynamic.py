"""Dynamic sparse training: a fixed number of weights, exchanged as the training goes on."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from prunus.check import fraction, unknown, whole
from prunus.courses.protocol import Course, Growth, in_unit_order
from prunus.parts import EDGES

__all__ = ["Dynamic", "GradientGrowth", "RandomGrowth"]

DECAYS = ("cosine", "constant")


@dataclass(frozen=True)
class RandomGrowth(Growth):
    """Removed weights return at random.

    References:
        Mocanu et al. (2018), Scalable training of artificial neural networks with adaptive sparse
        connectivity inspired by network science (SET).
    """

    def __call__(
        self, gradient: Float[Tensor, "out in"], generator: Generator
    ) -> Float[Tensor, "out in"]:
        """Uniform numbers."""
        return torch.rand(gradient.shape, generator=generator).to(gradient)


@dataclass(frozen=True)
class GradientGrowth(Growth):
    """Removed weights return where the loss pulls hardest: the largest |∂L/∂w|.

    References:
        Evci et al. (2020), Rigging the lottery: making all tickets winners (RigL), section 3.
    """

    reads_gradient: ClassVar[bool] = True

    def __call__(
        self, gradient: Float[Tensor, "out in"], generator: Generator
    ) -> Float[Tensor, "out in"]:
        """Absolute gradients."""
        return gradient.abs()


@dataclass(frozen=True)
class Dynamic(Course):
    """At every change each pool drops its smallest weights and takes in as many removed ones.

    The part floor(f · kept) is exchanged, with f = drop / 2 (1 + cos(π u / stop)) at the share u of
    the training. Weights that were dropped just now may be taken in again and keep their values;
    others start at exactly 0, with the optimizer's memory of them cleared, so that the function
    does not jump. Counts of layers never change. Weights are exchanged after an optimizer step;
    Evci et al. exchange in place of one.

    Attributes:
        drop: the part exchanged at first.
        stop: share of the training after which masks stay.
        every: optimizer steps between two exchanges.
        decay: "cosine", or "constant" up to `stop`.
        grow: `RandomGrowth()` (SET) or `GradientGrowth()` (RigL).

    References:
        Evci et al. (2020), Rigging the lottery: making all tickets winners, algorithm 1.
    """

    drop: float = 0.3
    stop: float = 0.75
    every: int = 100
    decay: Literal["cosine", "constant"] = "cosine"
    grow: Growth = GradientGrowth()
    serves: ClassVar[tuple[str, ...]] = (EDGES,)

    def __post_init__(self) -> None:
        fraction("drop", self.drop)
        in_unit_order("Dynamic", self.start, self.stop)
        whole("every", self.every, low=1)
        if self.decay not in DECAYS:
            raise unknown("decay", str(self.decay), DECAYS)

    def density(self, share: float, final: float) -> float:
        """As asked, throughout."""
        return final

    def replace(self, share: float) -> float:
        """The part of the kept weights that is exchanged."""
        if share >= self.stop:
            return 0.0
        if self.decay == "constant":
            return self.drop
        return self.drop / 2 * (1 + math.cos(math.pi * share / self.stop))
