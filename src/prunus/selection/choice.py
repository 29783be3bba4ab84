"""What a selection rule answers, and how it is called."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from prunus.parts import SelectionFacts

__all__ = ["Choice", "Selection", "checked_counts", "is_selection"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Choice:
    """The units that are kept.

    Attributes:
        mask: True where a unit is kept; exactly the count asked for in each pool.
        scale: factors that keep a sampled layer unbiased, or None.
        notes: what the rule has to say of its draw, such as kernel diagnostics.
    """

    mask: Bool[Tensor, "pools units"]
    scale: Float[Tensor, "pools units"] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Selection(SelectionFacts, Protocol):
    """The call of every selection rule; ties go to the lower index.

    `layer` is a `Layer` for edges, a `ClassView` for nodes, a `BlockView` for blocks and an
    `ExpertView` for experts.
    """

    def __call__(
        self,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        layer: Any,  # of the kinds that it serves
        generator: Generator,
    ) -> Choice: ...


def is_selection(rule: SelectionFacts) -> TypeGuard[Selection]:
    """True where a rule chooses alone, as `Selection` does; a joint method does not."""
    return not rule.joint and not rule.network


def checked_counts(scores: Tensor, kept: Tensor) -> None:
    """Raise a ValueError where pools and counts do not pair up, or a count leaves its pool."""
    n_pools, n_units = scores.shape
    if tuple(kept.shape) != (n_pools,):
        raise ValueError(
            f"`kept` must hold one count for each of {n_pools} pools, got shape "
            f"{tuple(kept.shape)}. Take it from an allocation."
        )
    if bool((kept < 0).any()) or bool((kept > n_units).any()):
        raise ValueError(
            f"`kept` must lie in [0, {n_units}], the pool size, got values from "
            f"{int(kept.min())} to {int(kept.max())}. Take it from an allocation."
        )
