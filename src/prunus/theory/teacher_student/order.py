"""Order parameters: the few overlaps that say all about a wide student and its teacher."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Generator, Tensor

from prunus.check import as_float64, finite, whole

__all__ = [
    "OrderParameters",
    "Weights",
    "joint",
    "joint_readout",
    "keep_nodes",
    "normalised",
    "one_seed",
    "order_parameters",
    "random_weights",
    "sample_weights",
]

# The most negative eigenvalue of C that counts as round-off, of an ODE solver at rtol 1e-6 too,
# as a share of the largest one.
SLACK = 1e-5
SINGULAR = 1e-10  # smallest over largest eigenvalue of T below which teacher nodes coincide


@dataclass(frozen=True, eq=False)
class OrderParameters:
    """The overlaps of K student and M teacher weight vectors, and both readouts.

    With weights w (K × N) and w* (M × N): Q = w wᵀ/N, R = w w*ᵀ/N, T = w* w*ᵀ/N. Anything that
    `torch.as_tensor` takes is accepted; the fields are float64 tensors on the CPU.

    Attributes:
        Q: student overlaps, K × K, symmetric.
        R: student–teacher overlaps, K × M.
        T: teacher overlaps, M × M, symmetric and regular.
        v: student readout, K.
        v_star: teacher readout v*, M.

    Raises:
        ValueError: K < 1 or M < 1, shapes that do not fit, NaN, an asymmetric Q or T, a singular
            T, or a joint covariance C = [[Q, R], [Rᵀ, T]] that is not positive semidefinite (by
            more than 1e-5 of its largest eigenvalue).
    """

    Q: Float[Tensor, "K K"]
    R: Float[Tensor, "K M"]
    T: Float[Tensor, "M M"]
    v: Float[Tensor, " K"]
    v_star: Float[Tensor, " M"]

    if TYPE_CHECKING:  # what the constructor takes is wider than what the fields are

        def __init__(self, Q: Any, R: Any, T: Any, v: Any, v_star: Any) -> None: ...

    def __post_init__(self) -> None:
        for name, dims in (("Q", 2), ("R", 2), ("T", 2), ("v", 1), ("v_star", 1)):
            values = as_float64(name, getattr(self, name), dims=dims)
            object.__setattr__(self, name, values.detach().cpu())
        students, teachers = len(self.v), len(self.v_star)
        if students < 1 or teachers < 1:
            raise ValueError(
                f"`v` and `v_star` must have at least one node each, got K = {students} and "
                f"M = {teachers}."
            )
        wanted = {"Q": (students, students), "R": (students, teachers), "T": (teachers, teachers)}
        for name, shape in wanted.items():
            given = tuple(getattr(self, name).shape)
            if given != shape:
                raise ValueError(
                    f"`{name}` must have shape {shape} for K = {students} students (from `v`) and "
                    f"M = {teachers} teachers (from `v_star`), got {given}."
                )
        for name in ("Q", "T"):
            matrix = getattr(self, name)
            skew = float((matrix - matrix.T).abs().max())
            if skew > 1e-8 * float(matrix.abs().max().clamp(min=1e-300)):
                raise ValueError(
                    f"`{name}` must be symmetric, got entries that differ by {skew:.3g} from their "
                    f"mirror images. Pass ({name} + {name}.T)/2 if that is round-off."
                )
        spectrum = torch.linalg.eigvalsh(self.T)
        if float(spectrum[0]) <= SINGULAR * float(spectrum[-1]):
            raise ValueError(
                f"`T` must be regular, got eigenvalues from {float(spectrum[0]):.3g} to "
                f"{float(spectrum[-1]):.3g}: teacher nodes are linearly dependent. Merge them."
            )
        spectrum = torch.linalg.eigvalsh(joint(self))
        if float(spectrum[0]) < -SLACK * float(spectrum[-1]):
            raise ValueError(
                f"The joint covariance [[Q, R], [R.T, T]] must be positive semidefinite, got a "
                f"smallest eigenvalue of {float(spectrum[0]):.3g}. No weights have these overlaps."
            )


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of students and teachers of N inputs; leading axes are independent seeds.

    Attributes:
        student: w, (seeds…) × K × N.
        teacher: w*, (seeds…) × M × N.
        v: student readout, (seeds…) × K.
        v_star: teacher readout, M; the same for all seeds.

    Raises:
        ValueError: shapes that do not fit, or NaN.
    """

    student: Float[Tensor, "*seeds K N"]
    teacher: Float[Tensor, "*seeds M N"]
    v: Float[Tensor, "*seeds K"]
    v_star: Float[Tensor, " M"]

    if TYPE_CHECKING:  # as above

        def __init__(self, student: Any, teacher: Any, v: Any, v_star: Any) -> None: ...

    def __post_init__(self) -> None:
        for name in ("student", "teacher", "v", "v_star"):
            values = as_float64(name, getattr(self, name))
            object.__setattr__(self, name, values.detach().cpu())
        shape, teacher = tuple(self.student.shape), tuple(self.teacher.shape)
        fits = (
            len(shape) >= 2
            and len(teacher) == len(shape)
            and teacher[:-2] == shape[:-2]
            and teacher[-1] == shape[-1]
            and tuple(self.v.shape) == shape[:-1]
            and tuple(self.v_star.shape) == teacher[-2:-1]
        )
        if not fits:
            raise ValueError(
                f"`student` (…, K, N), `teacher` (…, M, N), `v` (…, K) and `v_star` (M,) must fit, "
                f"got {shape}, {teacher}, {tuple(self.v.shape)} and {tuple(self.v_star.shape)}."
            )


def joint(order: OrderParameters) -> Float[Tensor, "P P"]:
    """C = [[Q, R], [Rᵀ, T]], the covariance of the fields (λ, ν) for standard normal inputs."""
    top = torch.cat([order.Q, order.R], dim=1)
    return torch.cat([top, torch.cat([order.R.T, order.T], dim=1)])


def joint_readout(order: OrderParameters) -> Float[Tensor, " P"]:
    """a = (v, −v*), so that the student's error signal is Σ_c a_c g(f_c)."""
    return torch.cat([order.v, -order.v_star])


def normalised(order: OrderParameters) -> OrderParameters:
    """The order parameters after scaling every student weight vector to norm √N; v stays."""
    norm = order.Q.diagonal().sqrt()
    if float(norm.min()) == 0:
        raise ValueError(
            f"A student of norm 0 (index {int(norm.argmin())}) cannot be normalised. "
            f"Leave it out with `keep_nodes`, or pass normalise=False."
        )
    return replace(order, Q=order.Q / torch.outer(norm, norm), R=order.R / norm[:, None])


def keep_nodes(order: OrderParameters, kept: Any) -> OrderParameters:
    """The order parameters of the student with only the nodes `kept` (indices), others removed."""
    index: Int[Tensor, " k"] = torch.as_tensor(kept)
    return replace(order, Q=order.Q[index][:, index], R=order.R[index], v=order.v[index])


def order_parameters(weights: Weights) -> OrderParameters:
    """Measure the order parameters of one student and teacher (no seeds axis)."""
    if weights.student.ndim != 2:
        raise ValueError(
            f"`weights` must hold one seed, got student weights of shape "
            f"{tuple(weights.student.shape)}. Take one seed with `one_seed`."
        )
    student, teacher, inputs = weights.student, weights.teacher, weights.student.shape[1]
    return OrderParameters(
        student @ student.T / inputs,
        student @ teacher.T / inputs,
        teacher @ teacher.T / inputs,
        weights.v,
        weights.v_star,
    )


def one_seed(weights: Weights, seed: int) -> Weights:
    """The weights of one seed of a batch with one seeds axis."""
    return Weights(weights.student[seed], weights.teacher[seed], weights.v[seed], weights.v_star)


def sample_weights(
    order: OrderParameters,
    inputs: int,
    *,
    generator: Generator,
    seeds: int | None = None,
    exact: bool = True,
) -> Weights:
    """Gaussian weights with given order parameters.

    w = C^{1/2} z with z of P × N standard normals; with `exact`, z zᵀ/N is made the identity
    first, so that the order parameters are met to round-off and not only up to N^(−1/2).

    Args:
        order: what the weights shall have.
        inputs: N, at least P = K + M when exact.
        generator: source of randomness.
        seeds: number of independent draws on a leading axis; None for no such axis.
        exact: meet `order` to round-off.
    """
    covariance = joint(order)
    students, fields = len(order.v), len(covariance)
    whole("inputs", inputs, low=fields if exact else 1)
    batch = 1 if seeds is None else whole("seeds", seeds, low=1)
    normal = torch.randn(batch, fields, inputs, generator=generator, dtype=torch.float64)
    if exact:
        chol = torch.linalg.cholesky(normal @ normal.mT / inputs)
        normal = torch.linalg.solve_triangular(chol, normal, upper=False)
    values, vectors = torch.linalg.eigh(covariance)
    drawn = (vectors * values.clamp(min=0).sqrt()) @ normal
    student, teacher = drawn[:, :students], drawn[:, students:]
    readout = order.v.expand(batch, students).clone()
    if seeds is None:
        return Weights(student[0], teacher[0], readout[0], order.v_star)
    return Weights(student, teacher, readout, order.v_star)


def random_weights(
    students: int,
    teachers: int,
    inputs: int,
    *,
    generator: Generator,
    teacher_readout: float = 4.0,
    seeds: int | None = None,
) -> Weights:
    """A fresh start: w, w* and v all standard normal, and v* = `teacher_readout` at every node."""
    whole("students", students, low=1)
    whole("teachers", teachers, low=1)
    whole("inputs", inputs, low=1)
    batch = () if seeds is None else (whole("seeds", seeds, low=1),)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    readout = finite("teacher_readout", torch.full((teachers,), float(teacher_readout)))
    return Weights(
        normal(students, inputs), normal(teachers, inputs), normal(students), readout.double()
    )


def as_arrays(order: OrderParameters) -> tuple[Float[ndarray, "P P"], Float[ndarray, " P"], int]:
    """C, a and K as NumPy arrays, the working form of every formula here."""
    covariance = joint(order).numpy()
    return np.ascontiguousarray(covariance), joint_readout(order).numpy(), len(order.v)
