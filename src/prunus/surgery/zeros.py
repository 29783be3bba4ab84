"""Which slices of a model's tensors are all zero, each tensor read once for all groups."""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from prunus.zeros import PIECE, beside_zero

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
            values = self._state[name].detach()
            if values.ndim > 1 and axis < 2:  # whoever asks for one will ask for the other
                self._found[name, 0], self._found[name, 1] = _zero_lines(values)
            else:
                self._found[name, axis] = _zero(values, axis)
        return self._found[name, axis]


def _zero_lines(
    values: Shaped[Tensor, "rows columns ..."],
) -> tuple[Bool[Tensor, " rows"], Bool[Tensor, " columns"]]:
    """Which slices along the first two axes are zero, from one pass in pieces."""
    if not values.numel():
        return _zero(values, 0), _zero(values, 1)
    flat = values.flatten(1)
    rows, columns = [], torch.zeros(flat.shape[1], dtype=torch.uint8, device=flat.device)
    for piece in torch.split(flat, max(1, PIECE // flat.shape[1])):
        some = beside_zero(piece).view(torch.uint8)  # whose extremes are found quickest
        rows.append(some.amax(1))
        columns = torch.maximum(columns, some.amax(0))
    return torch.cat(rows).cpu() == 0, columns.view(values.shape[1], -1).amax(1).cpu() == 0


def _zero(values: Tensor, axis: int) -> Bool[Tensor, " slices"]:
    """Reduced axis by axis from the front, as strided reductions are far slower."""
    if not values.numel():
        return torch.ones(values.shape[axis], dtype=torch.bool)
    some = beside_zero(values).view(torch.uint8)
    for _ in range(axis):
        some = some.amax(0)
    return (some.flatten(1).amax(1) if some.ndim > 1 else some).cpu() == 0
