"""The compensations by name: none, and least squares on the layer's own inputs."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.check import positive, unknown
from prunus.compensation.least_squares import SOLVERS, least_squares
from prunus.compensation.protocol import Compensation
from prunus.layer import Layer
from prunus.parts import FORMERLY, LATER, UNITS, shown
from prunus.zeros import with_zeros

__all__ = ["LeastSquares", "NoCompensation"]


@dataclass(frozen=True)
class NoCompensation(Compensation):
    """Kept weights stay as they are."""

    statistics: ClassVar[tuple[str, ...]] = ()
    refits: ClassVar[bool] = False
    after_joint: ClassVar[bool] = True
    idle: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = UNITS

    def __call__(
        self, layer: Layer, mask: Bool[Tensor, "out in"]
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        """The weights with zeros outside the mask, and the bias as it is."""
        return with_zeros(layer.weight, mask), layer.bias


@dataclass(frozen=True)
class LeastSquares(Compensation):
    """Kept weights refitted to the layer's dense outputs; with a ridge, multi-weight OBS.

    Attributes:
        ridge: relative to the mean of the Gram's diagonal.
        solver: "cholesky" factorises what each row keeps; "cg" takes conjugate gradients over all
            rows at once; "auto" takes "cg" where it has less than half of the multiply-adds, which
            half-kept square layers reach at about 1500 inputs, and "cholesky" below; "pinv" gives
            the minimum-norm solution without a ridge.
        intercept: move the bias too, where the layer has one.
        rtol: for "cg": how far the layer error may lie above the least one, relative to it; the
            bound reached is the layer's note `excess`.

    References:
        Acharyya et al. (2021); Hassibi and Stork (1993). See `least_squares`.
    """

    ridge: float = 1e-8
    solver: Literal["auto", "cholesky", "cg", "pinv"] = field(
        default="auto", metadata={FORMERLY: "cholesky"}
    )
    intercept: bool = False
    rtol: float = field(default=1e-3, metadata={LATER: True})
    after_joint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise unknown("solver", self.solver, list(SOLVERS))
        positive("ridge", self.ridge)
        positive("rtol", self.rtol)

    __repr__ = shown

    @property
    def statistics(self) -> tuple[str, ...]:
        """The Gram matrix, and the mean where the bias moves."""
        return ("gram", "mean") if self.intercept else ("gram",)

    def __call__(
        self, layer: Layer, mask: Bool[Tensor, "out in"]
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        """The refitted weights, exactly zero outside the mask, and the bias."""
        weight, bias, *_ = self.fit(layer, mask)
        return weight, bias

    def fit(
        self, layer: Layer, mask: Bool[Tensor, "out in"]
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None, float, dict[str, float]]:
        """As the call, the largest relative ridge that a row needed, and notes.

        Where conjugate gradients solved the layer, its note `excess` bounds how far the error lies
        above the least one, relative to it.

        Raises:
            ValueError: the layer has no Gram matrix, or one that cannot be factorised.
        """
        layer.require(*self.statistics)
        intercept = self.intercept and layer.bias is not None
        masks = mask.chunk(layer.groups) if layer.groups > 1 else (mask,)
        fits = []
        for part, own in zip(layer.blocks(), masks, strict=True):
            assert part.gram is not None  # required above
            fits.append(
                least_squares(
                    part.weight,
                    part.gram,
                    own,
                    ridge=self.ridge,
                    solver=self.solver,
                    rtol=self.rtol,
                    mean=part.mean,
                    bias=part.bias,
                    intercept=intercept,
                    cross=part.cross,
                    dense_gram=part.dense_gram,
                    dense_mean=part.dense_mean,
                )
            )
        weight = torch.cat([fit.weight for fit in fits])
        biases = [fit.bias for fit in fits if fit.bias is not None]
        bias = torch.cat(biases) if biases else None
        notes = {}
        if any(fit.solver == "cg" for fit in fits):
            excess = sum(float(fit.excess.sum()) for fit in fits)
            least = sum(float(fit.after.sum()) for fit in fits) - excess
            notes["excess"] = excess / least if least > 0 else 0.0 if excess == 0 else math.inf
        return weight, bias, float(max(fit.ridge.max() for fit in fits)), notes
