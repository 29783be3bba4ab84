"""Two real networks on the same inputs, each in its own dtype and on its own device."""

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from prunus.calibration.batches import parts
from prunus.guarantee.criteria import dtype_of, outputs_of

__all__ = ["RealPair"]


class RealPair:
    """A network and its pruned form, run side by side."""

    def __init__(
        self,
        model: nn.Module,
        pruned: nn.Module,
        known: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        """Two networks.

        Args:
            model: the dense network.
            pruned: its pruned form.
            known: inputs as they were read and both networks' outputs on them, not to be run again.
        """
        self._known = known
        self._model = model
        self._pruned = pruned
        self._dtype = dtype_of(model)
        other = dtype_of(pruned)
        self._other = None if other == self._dtype else other

    @property
    def entry(self) -> float:
        """Relative rounding of the inputs that the pruned network reads; 0 in one dtype."""
        return 0.0 if self._other is None else torch.finfo(self._other).eps / 2

    def __call__(
        self, x: Tensor
    ) -> tuple[
        Float64[Tensor, "samples ..."],
        Float64[Tensor, "samples outputs"],
        Float64[Tensor, "samples outputs"],
    ]:
        """The inputs as the dense network reads them, and both networks' outputs on them."""
        if self._known is not None and x is self._known[0]:
            return self._known
        read = x.to(self._dtype)
        pieces = list(enumerate(parts(read)))
        first = [outputs_of(self._model, part, None, i) for i, part in pieces]
        second = [outputs_of(self._pruned, part, self._other, i) for i, part in pieces]
        return read.double(), torch.cat(first), torch.cat(second)
