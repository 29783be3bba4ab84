"""How a basis is called: the same network, written so that its units mean more."""

from typing import Any, Protocol, runtime_checkable

from torch import nn

from prunus.parts import BasisFacts

__all__ = ["Basis"]


@runtime_checkable
class Basis(BasisFacts, Protocol):
    """What is done to a network before anything of it is scored."""

    def __call__(self, model: nn.Module, data: Any, *, progress: bool | None) -> nn.Module:
        """A network that computes the same; `model` itself where nothing changes.

        Args:
            model: the network; it is left as it is.
            data: batches, or None where there are none.
            progress: show bars.
        """
        ...
