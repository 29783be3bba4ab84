"""Which slices of a model's tensors are all zero, each tensor read once for all groups."""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Bool
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
            tensor = self._state[name].detach()
            sizes = tensor.abs() if tensor.numel() else tensor  # one pass for all of its axes
            for each in {axis, *range(min(2, tensor.ndim))}:
                self._found[name, each] = _zero(sizes, each)
        return self._found[name, axis]


def _zero(sizes: Tensor, axis: int) -> Bool[Tensor, " slices"]:
    """Reduced axis by axis from the front, as strided reductions are far slower."""
    if not sizes.numel():
        return torch.ones(sizes.shape[axis], dtype=torch.bool)
    for _ in range(axis):
        sizes = sizes.amax(0)
    return (sizes.flatten(1).amax(1) if sizes.ndim > 1 else sizes).eq(0).cpu()
