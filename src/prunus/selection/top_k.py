"""Keep the best units of each pool."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from prunus.selection.choice import Choice, checked_counts

__all__ = ["TopK", "top_k_mask"]


def top_k_mask(
    scores: Float[Tensor, "pools units"], kept: Int[Tensor, " pools"]
) -> Bool[Tensor, "pools units"]:
    """Keep the `kept[p]` highest scores of each pool p; ties go to the lower index.

    Ranks are compared, never values, so equal scores cannot change the count.
    Raises ValueError if a count lies outside its pool.
    """
    checked_counts(scores, kept)
    best_first = scores.argsort(dim=1, descending=True, stable=True)
    return best_first.argsort(dim=1) < kept.to(scores.device)[:, None]


@dataclass(frozen=True)
class TopK:
    """Deterministic selection of the best units."""

    random: ClassVar[bool] = False

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: Any,
        generator: Generator,
    ) -> Choice:
        """The mask of the best units of each pool."""
        del layer, generator  # needs neither; every rule is called alike
        return Choice(mask=top_k_mask(scores, kept))
