"""Which slices of a model's tensors are all zero, each tensor read once for all groups."""

from collections.abc import Callable, Collection, Mapping

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

__all__ = ["Zeros"]


class Zeros:
    """The zero slices of a state, found as they are asked for; the state must not change.

    `filled` names tensors without any zero, which need not be read.
    """

    def __init__(self, state: Mapping[str, Tensor], filled: Collection[str] = ()) -> None:
        self._state = state
        self._filled = filled
        self._found: dict[tuple[str, int], Bool[Tensor, " slices"]] = {}
        self._none: dict[tuple[str, int], bool] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def none(self, name: str, axis: int) -> bool:
        """True where no slice along the axis is zero."""
        key = (name, axis)
        if key not in self._none:
            full = name in self._filled
            self._none[key] = full or not bool(self.slices(name, axis).any())
        return self._none[key]

    def slices(self, name: str, axis: int) -> Bool[Tensor, " slices"]:
        """True for each slice along the axis without an entry beside zero; NaN is none."""
        if (name, axis) not in self._found:
            self._found[name, axis] = _zero(self._state[name].detach(), axis)
        return self._found[name, axis]


def _zero(values: Tensor, axis: int) -> Bool[Tensor, " slices"]:
    """Reduced axis by axis from the front, as strided reductions are far slower.

    Where the largest entry is 0, the lowest is asked for; there is no other memory of their size.
    """
    if values.ndim == 1:
        return (values == 0).cpu()
    if not values.numel():
        return torch.ones(values.shape[axis], dtype=torch.bool)
    if values.is_complex():
        values = values.abs()
    zero = _extreme(values, axis, torch.amax) == 0
    if bool(zero.any()):
        zero &= _extreme(values, axis, torch.amin) == 0
    return zero.cpu()


def _extreme(
    values: Tensor, axis: int, of: Callable[[Tensor, int], Tensor]
) -> Shaped[Tensor, " slices"]:
    for _ in range(axis):
        values = of(values, 0)
    return of(values.flatten(1), 1) if values.ndim > 1 else values
