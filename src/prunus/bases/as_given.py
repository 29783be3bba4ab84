"""A network in the basis in which it came."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prunus.bases.protocol import Basis
from prunus.parts import UNITS

__all__ = ["AsGiven"]


@dataclass(frozen=True)
class AsGiven(Basis):
    """The network as it came."""

    serves: ClassVar[tuple[str, ...]] = UNITS

    def __call__(self, model: nn.Module, data: Any, *, progress: bool | None) -> nn.Module:
        """Itself."""
        return model
