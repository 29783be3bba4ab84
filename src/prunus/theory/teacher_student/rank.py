"""Which pruning method wins, for which student: a ranking and a map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from prunus.check import fraction, positive, unknown, whole
from prunus.counting import count_of
from prunus.progress import track
from prunus.rng import generator_for
from prunus.theory.teacher_student.activation import Activation, activation_of
from prunus.theory.teacher_student.inequalities import Inequality, paper_inequalities
from prunus.theory.teacher_student.nodes import KERNELS, REWEIGHTS
from prunus.theory.teacher_student.order import OrderParameters, order_parameters, random_weights
from prunus.theory.teacher_student.pruned import METHODS, pruned_error
from prunus.theory.teacher_student.solve import Rate, solve

__all__ = [
    "MapCell",
    "Ranking",
    "RankingRow",
    "method_map",
    "rank_methods",
    "rank_students",
    "train_students",
]

FLOOR = 1e-8  # for more kept nodes than the kernel's rank, see prunus.dpp.KDPP


@dataclass(frozen=True, kw_only=True)
class RankingRow:
    """One method's place.

    Attributes:
        label: method, with its kernel and reweighting in brackets.
        method: as in `METHODS`.
        kernel: of a DPP over nodes, or None.
        reweight: least-squares mode, or None where the method gains nothing by it.
        error: mean of ε over the students.
        spread: standard deviation of ε over the students; 0 for a single one.
        wins: share of the students for which the method is the best.
    """

    label: str
    method: str
    kernel: str | None
    reweight: str | None
    error: float
    spread: float
    wins: float


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Methods from best to worst, and the paper's inequalities for each student.

    Attributes:
        rows: best first.
        kept: nodes kept, of K.
        density: k/K, at which edge methods are compared.
        students: K.
        teachers: M.
        noise: σ of the training labels, or NaN for students that were given.
        unpruned: mean ε before pruning.
        counted_noise: σ of label noise counted in all errors (as σ²/2); 0 counts none.
        inequalities: of each student, in order.
        note: how the students came to be, in words.
    """

    rows: tuple[RankingRow, ...]
    kept: int
    density: float
    students: int
    teachers: int
    noise: float
    unpruned: float
    counted_noise: float
    inequalities: tuple[tuple[Inequality, ...], ...]
    note: str

    @property
    def best(self) -> str:
        """Label of the method with the smallest mean error."""
        return self.rows[0].label


def train_students(
    students: int,
    teachers: int,
    noise: float = 0.0,
    *,
    starts: int = 3,
    inputs: int = 500,
    until: float = 1600.0,
    rate: Rate = 0.5,
    readout_rate: Rate = 0.5,
    teacher_readout: float = 4.0,
    activation: str | Activation = "erf",
    generator: Generator | None = None,
) -> list[OrderParameters]:
    """Students trained by the learning equations from random weights of `inputs` inputs.

    Each start has its own student and teacher of standard normal weights, whose overlaps of size
    N^(−1/2) decide how the student specialises.
    """
    whole("starts", starts, low=1)
    source = generator_for(0, "teacher-student") if generator is None else generator
    found = []
    for _ in range(starts):
        weights = random_weights(
            students, teachers, inputs, generator=source, teacher_readout=teacher_readout
        )
        curve = solve(
            order_parameters(weights),
            until=until,
            rate=rate,
            readout_rate=readout_rate,
            noise=noise,
            activation=activation,
            times=[0.0, until],
        )
        found.append(curve.end)
    return found


def rank_students(
    orders: Sequence[OrderParameters],
    density: float = 0.5,
    *,
    reweight: str | None = None,
    kernels: Sequence[str] = ("preact", "output"),
    activation: str | Activation = "erf",
    normalise: bool = False,
    counted_noise: float = 0.0,
    noise: float = math.nan,
    note: str = "",
    generator: Generator | None = None,
) -> Ranking:
    """Rank all methods on given students at k = floor(density K + 1/2) nodes, 1 ≤ k ≤ K.

    Edge methods are compared at the density k/K, with the same number of parameters for many
    inputs. `kernels` lists the DPPs over nodes that take part. Least squares helps nodes only.
    """
    if not orders:
        raise ValueError("`orders` must hold at least one student, got none.")
    students, teachers = orders[0].R.shape
    if any(tuple(order.R.shape) != (students, teachers) for order in orders):
        raise ValueError("`orders` must all have the same K and M. Rank them one by one.")
    p = fraction("density", density, one=True)
    if reweight is not None and reweight not in REWEIGHTS:
        raise unknown("reweighting", reweight, REWEIGHTS)
    for name in kernels:
        if name not in KERNELS:
            raise unknown("kernel", name, KERNELS)
    unit = activation_of(activation)
    kept = min(students, max(1, count_of(p, students)))
    source = generator_for(0, "rank") if generator is None else generator
    candidates: list[tuple[str, str | None]] = []
    for method in METHODS:
        if method == "dpp-node":
            candidates += [(method, kernel) for kernel in kernels]
        else:
            candidates.append((method, None))
    errors = torch.empty(len(candidates), len(orders), dtype=torch.float64)
    for n, (method, kernel) in enumerate(candidates):
        node = method.endswith("-node")
        for s, order in enumerate(orders):
            errors[n, s] = pruned_error(
                order,
                method,
                kept if node else kept / students,
                activation=unit,
                reweight=reweight if node else None,
                kernel=kernel or "preact",
                floor=FLOOR,
                normalise=normalise,
                counted_noise=counted_noise,
                generator=source,
            ).error
    best = errors.argmin(dim=0)
    rows = []
    for n, (method, kernel) in enumerate(candidates):
        mode = reweight if method.endswith("-node") else None
        inside = [part for part in (kernel, mode and f"+ls {mode}") if part]
        rows.append(
            RankingRow(
                label=f"{method} ({', '.join(inside)})" if inside else method,
                method=method,
                kernel=kernel,
                reweight=mode,
                error=float(errors[n].mean()),
                spread=float(errors[n].std(correction=1)) if len(orders) > 1 else 0.0,
                wins=float((best == n).double().mean()),
            )
        )
    unpruned = [
        float(
            pruned_error(
                order,
                "random-edge",
                1.0,
                activation=unit,
                normalise=normalise,
                counted_noise=counted_noise,
            )
        )
        for order in orders
    ]
    return Ranking(
        rows=tuple(sorted(rows, key=lambda row: row.error)),
        kept=kept,
        density=kept / students,
        students=students,
        teachers=teachers,
        noise=noise,
        unpruned=sum(unpruned) / len(unpruned),
        counted_noise=counted_noise,
        inequalities=tuple(
            paper_inequalities(order, kept, activation=unit, floor=FLOOR, normalise=normalise)
            for order in orders
        ),
        note=note,
    )


def rank_methods(
    K: int,
    M: int,
    noise: float = 0.0,
    density: float = 0.5,
    reweight: str | None = None,
    *,
    count_noise: bool = False,
    kernels: Sequence[str] = ("preact", "output"),
    normalise: bool = False,
    activation: str | Activation = "erf",
    generator: Generator | None = None,
    **training: Any,
) -> Ranking:
    """Which pruning method wins for K students of M teachers trained with label noise.

    Trains students by the learning equations (`train_students`), prunes each by every method in
    closed form, and ranks by mean error. Takes about a second for K = 6.

    Args:
        K: students.
        M: teachers.
        noise: σ of the training labels.
        density: share of nodes, or of edges, that is kept.
        reweight: least squares on the kept nodes' readout: "preact", "act", "teacher" or None.
        count_noise: add σ²/2 to all errors, as on noisy test labels.
        kernels: DPP kernels over nodes that take part.
        normalise: scale students to norm √N before pruning.
        activation: the units' nonlinearity.
        generator: source of the random starts; by default always the same ones.
        training: further arguments of `train_students` (starts, inputs, until, rate, …).

    Example:
        >>> rank_methods(K=4, M=2, noise=0.25, until=200).best
        'magnitude-edge'
    """
    whole("K", K, low=1)
    whole("M", M, low=1)
    sigma = positive("noise", noise, zero=True)
    fraction("density", density, one=True)
    orders = train_students(K, M, sigma, activation=activation, generator=generator, **training)
    return rank_students(
        orders,
        density,
        reweight=reweight,
        kernels=kernels,
        activation=activation,
        normalise=normalise,
        counted_noise=sigma if count_noise else 0.0,
        noise=sigma,
        note=f"{len(orders)} students trained by the learning equations from random weights",
        generator=generator,
    )


@dataclass(frozen=True, kw_only=True)
class MapCell:
    """One cell of a map: the ranking at (K, M, σ, k, reweighting)."""

    students: int
    teachers: int
    noise: float
    reweight: str | None
    ranking: Ranking


def method_map(
    students: Sequence[int],
    teachers: Sequence[int],
    noises: Sequence[float],
    *,
    densities: Sequence[float] | None = None,
    reweights: Sequence[str | None] = (None,),
    kernels: Sequence[str] = ("preact", "output"),
    normalise: bool = False,
    activation: str | Activation = "erf",
    generator: Generator | None = None,
    progress: bool | None = False,
    **training: Any,
) -> list[MapCell]:
    """Rank the methods over a grid; students are trained once per (K, M, σ).

    Args:
        students: values of K.
        teachers: values of M; pairs with K < M are left out.
        noises: values of σ.
        densities: kept shares; by default k = 1..K − 1 of each K.
        reweights: least-squares modes.
        kernels, normalise, activation, generator, training: as in `rank_methods`.
        progress: as in `prunus.progress.progress_bar`.

    Raises:
        ValueError: an empty grid.
    """
    grid = [(k, m, s) for m in teachers for k in students if k >= m for s in noises]
    if not grid:
        raise ValueError(
            f"The grid is empty: no K of {list(students)} is at least an M of {list(teachers)}, or "
            f"a list is empty."
        )
    source = generator_for(0, "map") if generator is None else generator
    cells = []
    for k, m, s in track(grid, "training and ranking", progress=progress):
        sigma = positive("noise", s, zero=True)
        orders = train_students(k, m, sigma, activation=activation, generator=source, **training)
        shares = densities if densities is not None else [n / k for n in range(1, k)]
        for share in shares:
            for mode in reweights:
                ranking = rank_students(
                    orders, share, reweight=mode, kernels=kernels, activation=activation,
                    normalise=normalise, noise=sigma, generator=source,
                )  # fmt: skip
                cells.append(
                    MapCell(students=k, teachers=m, noise=sigma, reweight=mode, ranking=ranking)
                )
    return cells
