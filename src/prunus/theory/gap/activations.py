"""What the bounds need to know of an activation: its slopes, its range, its value at zero."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.check import fraction, positive, unknown

__all__ = ["ACTIVATIONS", "Activation", "activation", "custom_activation", "leaky_relu"]


@dataclass(frozen=True, kw_only=True)
class Activation:
    """An activation applied entry by entry.

    Attributes:
        name: as in `ACTIVATIONS`.
        low: smallest slope a, rounded down.
        high: largest slope b, rounded up.
        kappa: sup_s (φ′(s)² + φ′(−s)²) / 2, rounded up.
        function: φ on tensors.
        at_zero: |φ(0)|, rounded up.
        sup: sup |φ|, ∞ where unbounded.
        width: sup φ − inf φ, ∞ where unbounded.
        defect: largest difference of what networks compute from φ, besides rounding.
    """

    name: str
    low: float
    high: float
    kappa: float
    function: Callable[[Tensor], Tensor]
    at_zero: float = 0.0
    sup: float = math.inf
    width: float = math.inf
    defect: float = 0.0

    @property
    def lipschitz(self) -> float:
        """L = max(|a|, |b|)."""
        return max(abs(self.low), abs(self.high))


def custom_activation(
    name: str,
    function: Callable[[Tensor], Tensor],
    low: float,
    high: float,
    *,
    kappa: float | None = None,
    at_zero: float | None = None,
) -> Activation:
    """An activation of one's own, whose slopes lie in [low, high].

    Args:
        name: for messages.
        function: φ on tensors, entry by entry.
        low: smallest slope, rounded down.
        high: largest slope, rounded up.
        kappa: sup_s (φ′(s)² + φ′(−s)²) / 2, rounded up; L² if None.
        at_zero: |φ(0)|; evaluated if None.

    Raises:
        ValueError: slopes that are not finite or out of order, or κ₂ above L².
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(
            f"`low` and `high` must be finite slopes in this order, got {low!r} and {high!r}."
        )
    square = max(abs(low), abs(high)) ** 2
    spread = square if kappa is None else positive("kappa", kappa, zero=True)
    if spread > square * (1 + 1e-12):
        raise ValueError(f"`kappa` is at most max(|low|, |high|)² = {square:.6g}, got {kappa!r}.")
    if at_zero is None:
        at_zero = abs(float(function(torch.zeros(1, dtype=torch.float64))[0]))
    return Activation(
        name=name,
        low=float(low),
        high=float(high),
        kappa=spread,
        function=function,
        at_zero=positive("at_zero", at_zero, zero=True),
    )


def leaky_relu(slope: float) -> Activation:
    """The leaky ReLU with a negative slope in [0, 1]."""
    s = fraction("slope", slope, zero=True, one=True)
    return Activation(
        name="leaky_relu",
        low=s,
        high=1.0,
        kappa=(1 + s * s) / 2,
        function=lambda x: F.leaky_relu(x, s),
    )


def softplus(x: Tensor) -> Tensor:
    """ln(1 + eˣ) without the switch to x that torch's makes at 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


ACTIVATIONS: dict[str, Activation] = {
    row.name: row
    for row in (
        Activation(name="identity", low=1, high=1, kappa=1, function=lambda x: x),
        Activation(name="relu", low=0, high=1, kappa=0.5, function=torch.relu),
        Activation(name="tanh", low=0, high=1, kappa=1, function=torch.tanh, sup=1, width=2),
        Activation(name="hardtanh", low=0, high=1, kappa=1, function=F.hardtanh, sup=1, width=2),
        Activation(name="elu", low=0, high=1, kappa=1, function=F.elu),
        Activation(
            name="softplus",
            low=0,
            high=1,
            kappa=0.5,
            function=softplus,
            at_zero=0.6931471806,
            defect=2.1e-9,  # torch's jumps by ln(1 + e⁻²⁰) at 20
        ),
        Activation(
            name="sigmoid",
            low=0,
            high=0.25,
            kappa=0.0625,
            function=torch.sigmoid,
            at_zero=0.5,
            sup=1,
            width=1,
        ),
        Activation(name="gelu", low=-0.128905, high=1.128905, kappa=0.645522, function=F.gelu),
        Activation(name="silu", low=-0.099840, high=1.099840, kappa=0.609808, function=F.silu),
    )
}


def activation(name: str | Activation) -> Activation:
    """The row of the table by name; an `Activation` of one's own passes through."""
    if isinstance(name, Activation):
        return name
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
