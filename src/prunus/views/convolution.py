"""Convolutions as matrices over their patches."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunus.views.protocol import Unclear

__all__ = ["ConvView", "batched"]


@dataclass(frozen=True)
class ConvView:
    """Convolutions of one, two or three spatial axes with stride, padding, dilation and groups."""

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        return values.flatten(1)

    def parameter(self, module: Any, matrix: Tensor) -> Tensor:
        return matrix.reshape(module.weight.shape)

    def vectors(self, module: Any, inputs: Tensor) -> Tensor:
        axes = len(module.kernel_size)
        padded = _padded(module, batched(module, inputs))
        for axis, (size, step, gap) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True)
        ):
            padded = padded.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
        batch, channels = padded.shape[:2]
        # (batch, channels, *positions, *taps) -> (batch · positions, groups, channels · taps)
        order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
        positions = batch * math.prod(padded.shape[2 : 2 + axes])
        width = channels // module.groups * math.prod(module.kernel_size)
        return padded.permute(order).reshape(positions, module.groups, width)

    def responses(self, module: Any, outputs: Tensor) -> Tensor:
        rows = batched(module, outputs).movedim(1, -1)
        return rows.reshape(-1, module.groups, rows.shape[-1] // module.groups)

    def channels(self, module: Any, inputs: Tensor) -> Tensor:
        raise Unclear(
            "An `attention_mask` does not say which patches of a convolution are padding. "
            "Leave the mask out of the batch, or exclude the convolutions."
        )


def batched(module: Any, inputs: Tensor) -> Tensor:
    """A convolution's input with its batch axis, which a single sample may lack."""
    return inputs[None] if inputs.ndim == len(module.kernel_size) + 1 else inputs


def _padded(module: Any, inputs: Tensor) -> Tensor:
    """The input as the convolution pads it itself; the modules keep the amounts for `F.pad`."""
    amounts = module._reversed_padding_repeated_twice
    if not any(amounts):
        return inputs
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return nn.functional.pad(inputs, amounts, mode=mode)
