"""Retraining a masked student: the learning equations close once coordinates go by mask pattern."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Generator, Tensor

from prunus.check import fraction, positive, whole
from prunus.theory.teacher_student.activation import Activation, activation_of
from prunus.theory.teacher_student.edges import keep_probabilities
from prunus.theory.teacher_student.ode import noise_matrix, pack
from prunus.theory.teacher_student.order import OrderParameters, Weights
from prunus.theory.teacher_student.sampled import Prior, sample_coordinates
from prunus.theory.teacher_student.solve import (
    Rate,
    Trajectory,
    choose_method,
    integrate,
    output_times,
    schedule,
    trajectory_of,
)

__all__ = [
    "Patterns",
    "Retraining",
    "measured_patterns",
    "pattern_total",
    "random_patterns",
    "refined_patterns",
    "retrain",
    "sampled_patterns",
]

ALL_PATTERNS = 8  # students up to which all 2^K patterns are followed


@dataclass(frozen=True, eq=False)
class Patterns:
    """Partial order parameters of the coordinates that share a mask pattern.

    Attributes:
        mask: which nodes keep the coordinates of a pattern, patterns × K.
        share: fraction of the N coordinates with that pattern, patterns.
        Q: Σ over the pattern's coordinates of w w /N, patterns × K × K; 0 for masked nodes.
        R: likewise w w*, patterns × K × M.
        T: likewise w* w*, patterns × M × M.
        v: student readout.
        v_star: teacher readout.
    """

    mask: Bool[Tensor, "patterns K"]
    share: Float[Tensor, " patterns"]
    Q: Float[Tensor, "patterns K K"]
    R: Float[Tensor, "patterns K M"]
    T: Float[Tensor, "patterns M M"]
    v: Float[Tensor, " K"]
    v_star: Float[Tensor, " M"]


@dataclass(frozen=True, eq=False)
class Retraining:
    """A retrained student.

    Attributes:
        curve: learning curve of the totals.
        end: the patterns at its end, from which a further round of pruning starts.
    """

    curve: Trajectory
    end: Patterns


def pattern_total(patterns: Patterns) -> OrderParameters:
    """The order parameters of the masked student: the sums over its patterns."""
    return OrderParameters(
        patterns.Q.sum(0), patterns.R.sum(0), patterns.T.sum(0), patterns.v, patterns.v_star
    )


def random_patterns(order: OrderParameters, density: float) -> Patterns:
    """All 2^K patterns of independent random masks on many inputs.

    f = p^|b| (1 − p)^{K − |b|}, Q = f b bᵀ ∘ Q, R = f b ∘ R, T = f T.

    Raises:
        ValueError: K > 8, where `sampled_patterns` or `measured_patterns` serve.
    """
    everything = Patterns(
        torch.ones(1, len(order.v), dtype=torch.bool),
        torch.ones(1, dtype=torch.float64),
        order.Q[None],
        order.R[None],
        order.T[None],
        order.v,
        order.v_star,
    )
    return refined_patterns(everything, density)


def refined_patterns(patterns: Patterns, density: float) -> Patterns:
    """Prune again: each kept weight survives with probability `density`, on many inputs.

    A coordinate of pattern b goes to b′ ⊆ b with probability p^{|b′|} (1 − p)^{|b| − |b′|}. With
    `retrain` in between, this is iterated pruning.

    Raises:
        ValueError: K > 8, where `sampled_patterns` or `measured_patterns` serve.
    """
    p = fraction("density", density, one=True)
    students = patterns.mask.shape[1]
    if students > ALL_PATTERNS:
        raise ValueError(
            f"All 2^K patterns are followed up to K = {ALL_PATTERNS}, got K = {students}. Use "
            f"`sampled_patterns` or `measured_patterns`."
        )
    mask = torch.tensor(list(itertools.product([False, True], repeat=students)))
    inside = ~(mask[:, None] & ~patterns.mask).any(-1)
    kept = mask.double()
    count, before = kept.sum(1)[:, None], patterns.mask.double().sum(1)
    chance = inside * p**count * (1 - p) ** (before - count).clamp(min=0)
    some = chance.any(1)
    mask, kept, chance = mask[some], kept[some], chance[some]
    return Patterns(
        mask,
        chance @ patterns.share,
        torch.einsum("nb,bij->nij", chance, patterns.Q) * kept[:, :, None] * kept[:, None, :],
        torch.einsum("nb,bij->nij", chance, patterns.R) * kept[:, :, None],
        torch.einsum("nb,bij->nij", chance, patterns.T),
        patterns.v,
        patterns.v_star,
    )


def measured_patterns(weights: Weights, mask: Any) -> Patterns:
    """The patterns that a given mask makes of given weights (of one seed): at most min(2^K, N)."""
    student, teacher = weights.student, weights.teacher
    given = torch.as_tensor(mask)
    if student.ndim != 2 or tuple(given.shape) != tuple(student.shape):
        raise ValueError(
            f"`mask` must have the shape (K, N) of one seed's weights, got {tuple(given.shape)} "
            f"for weights of shape {tuple(student.shape)}."
        )
    return _blocks(student, teacher, given.bool(), weights.v, weights.v_star)


def sampled_patterns(
    order: OrderParameters,
    rule: str,
    density: float,
    *,
    generator: Generator,
    prior: str | Prior = "gaussian",
    samples: int = 400_000,
) -> Patterns:
    """Patterns of an edge rule ("random", "magnitude", "dpp") on sampled coordinates.

    For K > 8 the number of patterns met grows with `samples`; choose it as large as the N meant.
    """
    students, teachers = order.R.shape
    whole("samples", samples, low=students + teachers + 1)
    student, teacher = sample_coordinates(order, prior, samples=samples, generator=generator)
    keep = keep_probabilities(student, rule, density)
    mask = torch.rand(keep.shape, generator=generator, dtype=torch.float64) < keep
    return _blocks(student, teacher, mask, order.v, order.v_star)


def retrain(
    start: Patterns,
    *,
    until: float = 500.0,
    rate: Rate = 0.5,
    readout_rate: Rate = 0.5,
    noise: float = 0.0,
    activation: str | Activation = "erf",
    times: Any = None,
    method: str | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> Retraining:
    """Integrate the learning equations of a student whose masked weights stay zero.

    The drift of a coordinate is linear in that coordinate's (w, w*), so the partial sums of each
    mask pattern b close, with Γ and D2 of the totals:

        dR^b/dα = −η_w D^b_{·,K+n},  dQ^b/dα = −η_w (D^b + D^bᵀ) + η_w² f_b (b v)(b v)ᵀ ∘ D2,
        D^b = diag(b) diag(v) Γ(C) C^b

    A node-pruned student needs none of this: `solve(keep_nodes(order, kept))`.

    Args:
        start: the masked student by patterns.
        until, rate, readout_rate, noise, activation, times, method, rtol, atol: as in `solve`.

    Returns:
        the learning curve of the totals, and the patterns at its end.

    References:
        Derived in docs/teacher_student.md.
    """
    unit = activation_of(activation)
    horizon = positive("until", until)
    sigma = positive("noise", noise, zero=True)
    first, second = schedule("rate", rate), schedule("readout_rate", readout_rate)
    stored = output_times(times, horizon)
    students, teachers = len(start.v), len(start.v_star)
    patterns = len(start.share)
    kept, share = start.mask.numpy().astype(np.float64), start.share.numpy()
    target = start.v_star.numpy()
    rows, columns = np.triu_indices(students)
    size = len(rows)
    fields = students + teachers
    covariance = np.empty((patterns, fields, fields))
    covariance[:, students:, students:] = start.T.numpy()

    def fill(state: ndarray) -> ndarray:
        """Write the state into `covariance`; return v."""
        block = state[: patterns * (size + students * teachers)].reshape(patterns, -1)
        covariance[:, rows, columns] = block[:, :size]
        covariance[:, columns, rows] = block[:, :size]
        overlap = block[:, size:].reshape(patterns, students, teachers)
        covariance[:, :students, students:] = overlap
        covariance[:, students:, :students] = overlap.transpose(0, 2, 1)
        return state[block.size :]

    def slope(alpha: float, state: ndarray) -> ndarray:
        v = fill(state)
        readout = np.concatenate([v, -target])
        whole_covariance = covariance.sum(0)
        gamma = unit.stein(whole_covariance, readout, students)
        drift = (v[:, None] * gamma) @ covariance
        drift *= kept[:, :, None]
        growth = noise_matrix(whole_covariance, readout, students, sigma, unit)
        growth *= np.multiply.outer(v, v)
        eta = first(alpha)
        change = -eta * (drift[:, :, :students] + drift[:, :, :students].transpose(0, 2, 1))
        change += (eta**2 * share)[:, None, None] * (kept[:, :, None] * kept[:, None, :]) * growth
        block = np.concatenate(
            [
                change[:, rows, columns],
                -eta * drift[:, :, students:].reshape(patterns, -1),
            ],
            axis=1,
        )
        dv = -second(alpha) * (unit.pair(whole_covariance) @ readout)[:students]
        return np.concatenate([block.ravel(), dv])

    begin = np.concatenate(
        [
            np.concatenate(
                [start.Q.numpy()[:, rows, columns], start.R.numpy().reshape(patterns, -1)], axis=1
            ).ravel(),
            start.v.numpy(),
        ]
    )
    chosen = choose_method(method, len(begin))
    solution = integrate(slope, begin, horizon, chosen, rtol, atol)

    def between(alpha: float) -> ndarray:
        v = fill(solution.sol(alpha))
        whole_covariance = covariance.sum(0)
        return pack(
            whole_covariance[:students, :students], whole_covariance[:students, students:], v.copy()
        )

    curve = trajectory_of(
        between,
        stored,
        pattern_total(start),
        unit,
        sigma,
        method=chosen,
        evaluations=int(solution.nfev),
    )
    last = torch.from_numpy(fill(solution.sol(horizon)).copy())
    end = Patterns(
        start.mask,
        start.share,
        torch.from_numpy(covariance[:, :students, :students].copy()),
        torch.from_numpy(covariance[:, :students, students:].copy()),
        start.T,
        last,
        start.v_star,
    )
    return Retraining(curve, end)


def _blocks(
    student: Float[Tensor, "K N"],
    teacher: Float[Tensor, "M N"],
    mask: Bool[Tensor, "K N"],
    v: Float[Tensor, " K"],
    v_star: Float[Tensor, " M"],
) -> Patterns:
    patterns, which = torch.unique(mask.T, dim=0, return_inverse=True)
    kept = student * mask
    inputs, count = student.shape[1], len(patterns)

    def gather(left: Tensor, right: Tensor) -> Tensor:
        product = left[:, None] * right[None]
        flat = product.reshape(-1, inputs).T
        total = torch.zeros(count, flat.shape[1], dtype=torch.float64)
        total.index_add_(0, which, flat)
        return total.reshape(count, len(left), len(right)) / inputs

    share = torch.bincount(which, minlength=count).double() / inputs
    return Patterns(
        patterns, share, gather(kept, kept), gather(kept, teacher), gather(teacher, teacher),
        v, v_star,
    )  # fmt: skip
