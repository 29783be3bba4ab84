"""Coordinates of a student whose teacher is not Gaussian, drawn from the teacher's prior."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from prunus.check import as_float64, unknown, whole
from prunus.theory.teacher_student.order import OrderParameters

__all__ = ["PRIORS", "Prior", "sample_coordinates"]

Prior = Callable[[int, Generator], Float[Tensor, "M samples"]]
PRIORS = ("gaussian", "sign")


def sample_coordinates(
    order: OrderParameters,
    prior: str | Prior = "gaussian",
    *,
    samples: int = 400_000,
    generator: Generator,
) -> tuple[Float[Tensor, "K samples"], Float[Tensor, "M samples"]]:
    """Coordinates (w_s, w*_s) of a trained student: w = R T⁻¹ w* + ξ.

    The noise ξ is Gaussian, independent of w*, of covariance Q − R T⁻¹ Rᵀ: learning is invariant
    under rotations, and what it does not take from the teacher is a sum over many inputs. It is
    drawn with exactly that covariance and exactly uncorrelated with the drawn w*.

    Args:
        order: the trained student.
        prior: law of the teacher's coordinates: "gaussian" (covariance T), "sign" (±√T_mm,
            independent, for a diagonal T), or a function (samples, generator) → M × samples.
        samples: number of coordinates.
        generator: source of randomness.

    Raises:
        ValueError: an unknown prior, or coordinates whose covariance is far from T.
    """
    students, teachers = order.R.shape
    whole("samples", samples, low=students + teachers + 1)
    if callable(prior):
        teacher = as_float64("prior", prior(samples, generator), dims=2)
    elif prior == "gaussian":
        root = torch.linalg.cholesky(order.T)
        teacher = root @ torch.randn(teachers, samples, generator=generator, dtype=torch.float64)
    elif prior == "sign":
        if float((order.T - torch.diag(order.T.diagonal())).abs().max()) > 0.1 * float(
            order.T.diagonal().min()
        ):
            raise ValueError(
                "The prior 'sign' draws independent teachers, but `T` is far from diagonal. Pass "
                "a function that draws their coordinates."
            )
        sign = torch.randint(2, (teachers, samples), generator=generator, dtype=torch.float64)
        teacher = (2 * sign - 1) * order.T.diagonal().sqrt()[:, None]
    else:
        raise unknown("prior", str(prior), PRIORS)
    if tuple(teacher.shape) != (teachers, samples):
        raise ValueError(
            f"`prior` must give shape {(teachers, samples)}, got {tuple(teacher.shape)}."
        )
    covariance = teacher @ teacher.T / samples
    if float((covariance - order.T).abs().max()) > 0.2 * float(order.T.diagonal().max()):
        raise ValueError(
            "`prior` must draw coordinates of covariance `T`, got one that differs by more than a "
            "fifth of its largest entry."
        )
    noise = torch.randn(students, samples, generator=generator, dtype=torch.float64)
    noise = noise - (noise @ teacher.T / samples) @ torch.linalg.solve(covariance, teacher)
    white = torch.linalg.cholesky(noise @ noise.T / samples)
    noise = torch.linalg.solve_triangular(white, noise, upper=False)
    follow = torch.linalg.solve(order.T, order.R.T).T
    left = order.Q - follow @ order.R.T
    values, vectors = torch.linalg.eigh((left + left.T) / 2)
    student = follow @ teacher + (vectors * values.clamp(min=0).sqrt()) @ noise
    return student, teacher
