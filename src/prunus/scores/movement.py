"""Movement: whether a training moves a weight away from zero or towards it."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.parts import EDGES, Composition
from prunus.scores.protocol import Score

__all__ = ["Movement"]


@dataclass(frozen=True)
class Movement(Score):
    """−Σ_t w_t ∂L/∂w′_t over the steps of a training, w′ the masked weight and w the dense one.

    Positive where steps against the gradient move the weight away from zero. Removed weights go on
    learning behind the mask, and their numbers go on moving: with w′ in place of w, as some code
    has it, a removed weight's number would stand still for ever. Made for fine-tuning a trained
    network on another task. Numbers of different layers are not comparable: use `Uniform()`.

    The paper's soft form keeps all weights above one threshold of all layers, and a penalty on
    σ of the numbers sets how many. Where their count is given, as here, a penalty that lowers all
    numbers near 0 alike changes no rank: what is left of that form is `Global()` beside this score.

    References:
        Sanh, Wolf, Rush (2020), Movement pruning: adaptive sparsity by fine-tuning, Eq. 3.
    """

    gathers: ClassVar[tuple[str, ...]] = ("movement",)
    serves: ClassVar[tuple[str, ...]] = (EDGES,)

    def beside(self, recipe: Composition) -> str | None:
        """It needs a course whose removed weights go on learning."""
        if recipe.schedule.inside and recipe.schedule.soft:
            return None
        return (
            f"Movement() is gathered while removed weights go on learning, which they do not in "
            f"{recipe.schedule!r}. Use Gradual(soft=True), and prunus.sparsify."
        )

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]:
        """The sums so far."""
        return layer.statistic("movement")
