"""Entries set to exactly zero, whatever they hold, at the speed of a product."""

import torch
from torch import Tensor

__all__ = ["clear", "kept_bits"]

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def kept_bits(mask: Tensor, like: Tensor) -> Tensor:
    """All bits set where `mask` is True, none elsewhere, in words as wide as the entries of `like`.

    A product with 0 would leave NaN where an entry is infinite, and `masked_fill_` is many times
    slower on a CPU.
    """
    return mask.to(like.device, WORDS[like.element_size()]).neg()


def clear(values: Tensor, bits: Tensor) -> None:
    """Zero the entries of `values`, in place, whose bits are not kept."""
    if values.element_size() != bits.element_size():  # a gradient in another type
        values.masked_fill_(bits == 0, 0.0)
        return
    values.detach().view(bits.dtype).bitwise_and_(bits)
