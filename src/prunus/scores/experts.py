"""Scores of the experts of mixture layers: what each does for the tokens that it is sent."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from prunus.check import unknown
from prunus.nodes import ExpertView
from prunus.parts import EXPERTS
from prunus.scores.protocol import Score

__all__ = ["ExpertGap", "ExpertLoad", "Reap"]

LOADS = ("tokens", "gate")


@dataclass(frozen=True)
class Reap(Score):
    """Router-weighted expert activation: the mean of gate · ‖f(x)‖₂ over an expert's tokens.

    0 for an expert that no token is sent to.

    References:
        Lasby et al. (2025), REAP the experts: why pruning prevails for one-shot MoE compression,
        Eq. 9.
    """

    serves: ClassVar[tuple[str, ...]] = (EXPERTS,)

    def experts(self, view: ExpertView) -> Float[Tensor, " experts"]:
        """In units of the stream."""
        found = view.effects().reap
        return found


@dataclass(frozen=True)
class ExpertLoad(Score):
    """How much of a router's work an expert gets.

    Attributes:
        by: "tokens", how many tokens are sent to it; "gate", the mean gate of these.
    """

    by: str = "tokens"
    serves: ClassVar[tuple[str, ...]] = (EXPERTS,)

    def __post_init__(self) -> None:
        if self.by not in LOADS:
            raise unknown("load of experts", str(self.by), LOADS)

    def experts(self, view: ExpertView) -> Float[Tensor, " experts"]:
        """Tokens, or a mean gate."""
        found: Tensor = getattr(view.effects(), self.by)
        return found.double()


@dataclass(frozen=True)
class ExpertGap(Score):
    """E‖y − y₋ₑ‖² of the layer's output without one expert, gates renormalised; exact for one.

    The layers of experts run once more for each of their experts.
    """

    serves: ClassVar[tuple[str, ...]] = (EXPERTS,)

    def experts(self, view: ExpertView) -> Float[Tensor, " experts"]:
        """In squared units of the stream, per token."""
        return view.gaps()
