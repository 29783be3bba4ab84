"""How a compensation is called."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from prunus.layer import Layer
from prunus.parts import CompensationFacts

__all__ = ["Compensation"]


@runtime_checkable
class Compensation(CompensationFacts, Protocol):
    """New values of the kept weights, exactly zero outside the mask, and of the bias."""

    def __call__(
        self, layer: Layer, mask: Bool[Tensor, "out in"]
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]: ...

    def fit(self, layer: Layer, mask: Bool[Tensor, "out in"]) -> tuple[Any, ...]:
        """As the call, the largest relative ridge that was needed (None where none is), and what
        there is to say of the layer, {note: value}, which may be left out.
        """
        answer = self(layer, mask)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise TypeError(
                f"A compensation must answer with (weight, bias), got {type(answer).__name__}. "
                f"Return the bias as it came where it stays, or None."
            )
        return *answer, None
