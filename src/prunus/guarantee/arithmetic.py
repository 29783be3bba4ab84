"""How coarsely a network computes, and how far its numbers reach: of its dtype and settings."""

from collections.abc import Iterator

import torch
from torch import nn

from prunus.guarantee.rules import AVAILABLE, Unsupported
from prunus.theory.gap.certificate import roundoff

__all__ = ["largest_of", "unit_of"]

TF32 = 2.0**-11  # of a product's factors; sums are finer
HALF = 2.0**-8  # of bfloat16, which "medium" float32 products may use


def unit_of(*networks: nn.Module) -> float:
    """The largest unit roundoff u with which any of the networks computes.

    Of the dtypes of their parameters and buffers; of TF32 or bfloat16 where PyTorch is allowed to
    multiply float32 numbers by them; of autocast where it is on. Tensor cores add up more finely
    than they are credited here.

    Raises:
        Unsupported: no floating-point arithmetic.
    """
    found = [
        max(roundoff(dtype), _products(device) if dtype is torch.float32 else 0.0)
        for dtype, device in _numbers(*networks)
    ]
    if not found:
        raise Unsupported(f"the networks have no floating-point parameters. {AVAILABLE}")
    return max(found)


def largest_of(*networks: nn.Module) -> float:
    """The largest number that every dtype in which the networks compute can hold."""
    return min((torch.finfo(dtype).max for dtype, _ in _numbers(*networks)), default=torch.inf)


def _numbers(*networks: nn.Module) -> Iterator[tuple[torch.dtype, str]]:
    """The dtypes in which networks compute, with their devices."""
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            if not tensor.is_floating_point():
                continue
            device = tensor.device.type
            yield tensor.dtype, device
            if torch.is_autocast_enabled(device):
                yield torch.get_autocast_dtype(device), device


def _products(device: str) -> float:
    """Roundoff of the factors of float32 products on a device."""
    precision = torch.get_float32_matmul_precision()
    if precision == "medium":
        return HALF
    if device == "cuda" and torch.backends.cudnn.allow_tf32:  # convolutions: on by default
        return TF32
    return TF32 if precision == "high" else 0.0
