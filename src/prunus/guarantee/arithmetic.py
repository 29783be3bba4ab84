"""How coarsely a network computes: the roundoff of its dtype, device and settings."""

import torch
from torch import nn

from prunus.guarantee.rules import AVAILABLE, Unsupported
from prunus.theory.gap.certificate import roundoff

__all__ = ["unit_of"]

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
    found = [0.0]
    for network in networks:
        for tensor in (*network.parameters(), *network.buffers()):
            if not tensor.is_floating_point():
                continue
            unit, device = roundoff(tensor.dtype), tensor.device.type
            if tensor.dtype is torch.float32:
                unit = max(unit, _products(device))
            if torch.is_autocast_enabled(device):
                unit = max(unit, roundoff(torch.get_autocast_dtype(device)))
            found.append(unit)
    if max(found) == 0:
        raise Unsupported(f"the networks have no floating-point parameters. {AVAILABLE}")
    return max(found)


def _products(device: str) -> float:
    """Roundoff of the factors of float32 products on a device."""
    precision = torch.get_float32_matmul_precision()
    if precision == "medium":
        return HALF
    if device == "cuda" and torch.backends.cudnn.allow_tf32:  # convolutions: on by default
        return TF32
    return TF32 if precision == "high" else 0.0
