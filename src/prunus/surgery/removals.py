"""How units go that are neither weights nor channels; a row for each kind.

Masks alone say which units of a network are gone. A row says what beside zeros makes the masked
network (`mark`), what the smaller one is (`small`), and what of its modules a file has to name
(`missing`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.hints import Batch
from prunus.parts import BLOCKS, EXPERTS
from prunus.surgery.depth import gone_parts, missing_of, without
from prunus.surgery.mixtures import bar, without_masked

__all__ = ["REMOVALS", "Removal", "mark", "removal_of"]

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Removal:
    """How units of one kind go.

    Attributes:
        small: (masked network, masks, granularity, example, rtol) -> the smaller one, verified.
        missing: (masked network, masks, granularity, example) -> {module that the smaller one
            lacks: what stands in its place}, for `take_out`.
        mark: (network with zeros, masks) -> None; makes it the masked one, in place.
        resizes: whether the smaller network has all modules, so that its tensors and the numbers
            of its modules tell it.
    """

    small: Callable[[nn.Module, Masks, Any, Any, float], nn.Module]
    missing: Callable[[nn.Module, Masks, Any, Any], dict[str, int | None]]
    mark: Callable[[nn.Module, Masks], None]
    resizes: bool


def _fewer_blocks(
    model: nn.Module, masks: Masks, granularity: Any, example: Batch, rtol: float
) -> nn.Module:
    gone = gone_parts(model, masks, granularity.part, example)
    return without(model, gone, granularity.part, example, rtol=rtol)


def _fewer_experts(
    model: nn.Module, masks: Masks, granularity: Any, example: Batch, rtol: float
) -> nn.Module:
    return without_masked(model, masks, example, rtol=rtol)


def _missing_blocks(
    model: nn.Module, masks: Masks, granularity: Any, example: Batch
) -> dict[str, int | None]:
    return missing_of(model, masks, granularity.part, example)


def _nothing(model: nn.Module, masks: Masks) -> None:
    """Zeros say it all."""


REMOVALS: dict[str, Removal] = {
    BLOCKS: Removal(_fewer_blocks, _missing_blocks, _nothing, resizes=False),
    EXPERTS: Removal(_fewer_experts, lambda *_: {}, bar, resizes=True),
}


def removal_of(granularity: Any) -> Removal | None:
    """The row of a granularity's units; None for weights and channels, which `compact` finds."""
    return REMOVALS.get(getattr(granularity, "units", ""))


def mark(model: nn.Module, granularity: Any, masks: Masks) -> None:
    """Make a network with zeros the masked one, in place."""
    found = removal_of(granularity)
    if found is not None:
        found.mark(model, masks)
