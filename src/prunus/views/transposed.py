"""Transposed convolutions as matrices over what each of their outputs reads."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.views.convolution import batched
from prunus.views.protocol import Unclear

__all__ = ["TransposedConvView"]


@dataclass(frozen=True)
class TransposedConvView:
    """Transposed convolutions of one, two or three spatial axes; the weight is (in, out, taps).

    An output reads, for each input channel, the inputs that the taps of its phase reach, and zeros
    at the other taps: the patches of the input with `stride` − 1 zeros between its values, under
    the taps in reverse. So W (out × in · taps) times such a patch is the output.
    """

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        groups = module.groups
        parts = values.reshape(groups, -1, *values.shape[1:])  # groups, in, out, taps
        return parts.transpose(1, 2).reshape(groups * values.shape[1], -1)

    def parameter(self, module: Any, matrix: Tensor) -> Tensor:
        wide, out, *taps = module.weight.shape
        groups = module.groups
        parts = matrix.reshape(groups, out, wide // groups, *taps)
        return parts.transpose(1, 2).reshape(wide, out, *taps)

    def vectors(self, module: Any, inputs: Tensor) -> Tensor:
        inputs = batched(module, inputs)
        axes = len(module.kernel_size)
        apart = [(n - 1) * s + 1 for n, s in zip(inputs.shape[2:], module.stride, strict=True)]
        spread = inputs.new_zeros(*inputs.shape[:2], *apart)
        view = spread
        for axis, step in enumerate(module.stride):
            view = view[(slice(None),) * (2 + axis) + (slice(None, None, step),)]
        view.copy_(inputs)
        amounts: list[int] = []
        for axis in reversed(range(axes)):
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
            border = reach - module.padding[axis]
            amounts += [border, border + module.output_padding[axis]]
        patches = nn.functional.pad(spread, amounts)
        for axis in range(axes):
            gap = module.dilation[axis]
            reach = gap * (module.kernel_size[axis] - 1)
            patches = patches.unfold(2 + axis, reach + 1, 1)[..., ::gap]
        patches = patches.flip(tuple(range(2 + axes, 2 + 2 * axes)))
        batch, channels = patches.shape[:2]
        order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
        positions = batch * math.prod(patches.shape[2 : 2 + axes])
        width = channels // module.groups * math.prod(module.kernel_size)
        return patches.permute(order).reshape(positions, module.groups, width)

    def responses(self, module: Any, outputs: Tensor) -> Tensor:
        rows = batched(module, outputs).movedim(1, -1)
        return rows.reshape(-1, module.groups, rows.shape[-1] // module.groups)

    def channels(self, module: Any, inputs: Tensor) -> Tensor:
        raise Unclear(
            "An `attention_mask` does not say which outputs of a transposed convolution are "
            "padding. Leave the mask out of the batch, or exclude these layers."
        )
