"""The generalisation error of a student, in closed form from its order parameters."""

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import positive
from prunus.theory.teacher_student.activation import Activation, activation_of
from prunus.theory.teacher_student.order import OrderParameters, as_arrays

__all__ = ["generalisation_error"]


def generalisation_error(
    order: OrderParameters, *, activation: str | Activation = "erf", counted_noise: float = 0.0
) -> Float[Tensor, ""]:
    """Half the mean squared error of the student on fresh inputs x ~ N(0, I).

    ε_g = ½ ⟨(f(x) − y(x))²⟩ = ½ aᵀ I2(C) a with C = [[Q, R], [Rᵀ, T]] and a = (v, −v*). This is
    half the mean squared error, everywhere in this package; the full one is twice as large.

    Args:
        order: overlaps and readouts of student and teacher.
        activation: "erf" (g(u) = erf(u/√2)), "relu", "linear", or an `Activation`.
        counted_noise: standard deviation σ of output noise on the test labels, which adds σ²/2;
            0 compares with the noiseless teacher.

    Returns:
        ε_g, a float64 scalar, in squared output units.

    References:
        Saad & Solla (1995), Phys. Rev. E 52, Eq. 5; Cho & Saul (2009) for ReLU.
    """
    covariance, readout, _ = as_arrays(order)
    pair = activation_of(activation).pair(covariance)
    noise = positive("counted_noise", counted_noise, zero=True)
    # A mean of squares: where student and teacher agree, rounding may leave −1e-17 of it.
    value = max(0.0, 0.5 * float(readout @ pair @ readout)) + 0.5 * noise**2
    return torch.tensor(value, dtype=torch.float64)
