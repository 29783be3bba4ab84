"""The learning equations of online gradient descent in the order parameters."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from prunus.theory.teacher_student.activation import Activation

__all__ = ["Derivative", "learning_rhs", "noise_matrix", "pack", "unpack"]


@dataclass(frozen=True, eq=False)
class Derivative:
    """dQ/dα (K × K), dR/dα (K × M) and dv/dα (K), with α = steps/N."""

    Q: Float[ndarray, "K K"]
    R: Float[ndarray, "K M"]
    v: Float[ndarray, " K"]


def noise_matrix(
    covariance: Float[ndarray, "P P"],
    readout: Float[ndarray, " P"],
    students: int,
    noise: float,
    activation: Activation,
) -> Float[ndarray, "K K"]:
    """D2_ik = ⟨g′(λ_i) g′(λ_k) Δ²⟩ with output noise: Σ_cd a_c a_d I4(i, k, c, d) + σ² J2(i, k)."""
    squared = activation.gated_square(covariance, readout, students)
    if noise == 0:
        return squared
    own = covariance[:students, :students]
    result: ndarray = squared + noise**2 * activation.slopes(own, students)
    return result


def learning_rhs(
    covariance: Float[ndarray, "P P"],
    readout: Float[ndarray, " P"],
    students: int,
    *,
    rate: float,
    readout_rate: float,
    noise: float = 0.0,
    activation: Activation,
    batch: int = 1,
    decay: float = 0.0,
) -> Derivative:
    """Right-hand side of the learning equations.

    With F = Γ C (see `Activation.stein`) and D2 of `noise_matrix`,

        dR_in/dα = −η_w v_i F_{i,K+n} − η_w κ R_in
        dQ_ik/dα = −η_w (v_i F_ik + v_k F_ki) + η_w² v_i v_k D2_ik / B − 2 η_w κ Q_ik
        dv_k/dα  = −η_v (I2(C) a)_k

    Args:
        covariance: C, of the fields of K students and then M teachers.
        readout: a = (v, −v*).
        students: K.
        rate: η_w of the first layer.
        readout_rate: η_v of the readout; 0 leaves it as it is (soft committee machine).
        noise: standard deviation σ of the training labels.
        activation: the units' nonlinearity.
        batch: B fresh samples per step, whose gradient is averaged.
        decay: κ, weight decay of the first layer: w −= (η_w κ/N) w in each step.

    References:
        Saad & Solla (1995), Phys. Rev. E 52; Riegler & Biehl (1995); Goldt et al. (2019).
        The Stein form is derived in docs/teacher_student.md.
    """
    own = readout[:students]
    drift = activation.stein(covariance, readout, students) @ covariance
    drift *= own[:, None]
    growth = noise_matrix(covariance, readout, students, noise, activation)
    dq = -rate * (drift[:, :students] + drift[:, :students].T)
    dq += (rate**2 / batch) * np.multiply.outer(own, own) * growth
    dr = -rate * drift[:, students:]
    if decay:
        dq -= 2 * rate * decay * covariance[:students, :students]
        dr -= rate * decay * covariance[:students, students:]
    if readout_rate:
        dv = -readout_rate * (activation.pair(covariance) @ readout)[:students]
    else:
        dv = np.zeros(students)
    return Derivative(dq, dr, dv)


def pack(
    q: Float[ndarray, "K K"], r: Float[ndarray, "K M"], v: Float[ndarray, " carried"]
) -> Float[ndarray, " state"]:
    """The upper triangle of Q, then R, then v (empty for a fixed readout), as one vector."""
    return np.concatenate([q[np.triu_indices(len(q))], r.ravel(), v])


def unpack(
    state: Float[ndarray, " state"], students: int, teachers: int
) -> tuple[Float[ndarray, "K K"], Float[ndarray, "K M"], Float[ndarray, " carried"]]:
    """Undo `pack`; v is empty where the state does not carry it (a fixed readout)."""
    first, second = np.triu_indices(students)
    size = len(first)
    q = np.empty((students, students))
    q[first, second] = state[:size]
    q[second, first] = state[:size]
    r = state[size : size + students * teachers].reshape(students, teachers)
    v = state[size + students * teachers :]
    return q, r, v
