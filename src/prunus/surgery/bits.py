"""Entries held at exactly zero through a training, at the speed of a product."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunus.zeros import WORDS

__all__ = ["IDLED", "clear", "idle", "kept_bits"]

IDLED = 100  # steps between two looks at what the optimizer keeps of removed weights
IDLE = 1e-30
ROOTED = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")  # what Adam and RMSprop take roots of


def kept_bits(mask: Tensor, like: Tensor) -> Tensor:
    """All bits set where `mask` is True, none elsewhere, in words as wide as the entries of `like`.

    A product with 0 would leave NaN where an entry is infinite, and `masked_fill_` is many times
    slower on a CPU.
    """
    width = WORDS.get(like.element_size(), torch.int8)  # of none so wide: `clear` fills instead
    return mask.to(like.device, width).neg_()


def clear(values: Tensor, bits: Tensor) -> None:
    """Zero the entries of `values`, in place, whose bits are not kept."""
    if values.element_size() != bits.element_size():  # a gradient in another type
        values.masked_fill_(bits == 0, 0.0)
        return
    values.detach().view(bits.dtype).bitwise_and_(bits)


def idle(optimizer: Optimizer | None, parameter: Tensor, kept: Tensor) -> None:
    """Lift second moments of removed entries off zero, of which a CPU takes slow square roots.

    MKL's root of 0 takes five times as long as that of 1e-30, a third of a step of AdamW where a
    tenth is kept. No weight feels it: the gradients of removed entries are 0.
    """
    if optimizer is None or parameter.device.type != "cpu":
        return
    state = optimizer.state.get(parameter, {})
    for name in ROOTED:
        value = state.get(name)
        if not isinstance(value, Tensor) or value.shape != parameter.shape or not value.is_cpu:
            continue
        if value.dtype in (torch.float32, torch.float64):
            value.masked_fill_(~kept, IDLE)
