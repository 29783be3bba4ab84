"""Node pruning: the error is a quadratic form in the readout, averaged over the kept set."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Generator, Tensor

from prunus.check import as_float64, unknown, whole
from prunus.dpp import KDPP
from prunus.dpp.kernel import gaussian_kernel
from prunus.theory.teacher_student.activation import Activation
from prunus.theory.teacher_student.order import OrderParameters, as_arrays

__all__ = [
    "KERNELS",
    "REWEIGHTS",
    "SCORES",
    "NodeSystem",
    "importance_set",
    "node_kernel",
    "node_system",
    "random_inclusion",
    "reweighted_error",
    "reweighted_readout",
    "subset_error",
]

KERNELS = ("preact", "act", "output", "rbf")
REWEIGHTS = ("preact", "act", "teacher")
SCORES = ("readout", "readout-norm", "signed-readout")
ENUMERATE = 200_000  # subsets up to which an average over them is exact
PARALLEL = 1e-10  # relative eigenvalue below which kept nodes count as linearly dependent
BLOCK = 4096  # subsets solved at once


@dataclass(frozen=True, eq=False)
class NodeSystem:
    """The quadratic form ε(u) = ½ [uᵀ G u − 2 uᵀ h + t] of a student's readout u.

    Attributes:
        gram: G = ⟨g(λ) g(λ)ᵀ⟩, K × K.
        cross: h_i = ⟨g(λ_i) y⟩, K.
        power: t = ⟨y²⟩ of the noiseless teacher.
        readout: v as trained, K.
        overlap: Q, K × K, for regressions of the pre-activations.
    """

    gram: Float[ndarray, "K K"]
    cross: Float[ndarray, " K"]
    power: float
    readout: Float[ndarray, " K"]
    overlap: Float[ndarray, "K K"]


def node_system(order: OrderParameters, activation: Activation) -> NodeSystem:
    """The quadratic form of a student from its order parameters."""
    covariance, readout, students = as_arrays(order)
    pair = activation.pair(covariance)
    teacher = -readout[students:]
    return NodeSystem(
        gram=pair[:students, :students],
        cross=pair[:students, students:] @ teacher,
        power=float(teacher @ pair[students:, students:] @ teacher),
        readout=readout[:students],
        overlap=covariance[:students, :students],
    )


def node_kernel(
    order: OrderParameters, kernel: Any, activation: Activation
) -> Float[Tensor, "K K"]:
    """The kernel of a DPP over nodes.

    "preact": Q, of the pre-activations (the paper's). "act": G = ⟨g gᵀ⟩. "output": diag(v) G
    diag(v), of what each node adds to the output. "rbf": exp(−β d²) of the pre-activations' mean
    squared distances, β one over their median. Or a K × K matrix.
    """
    if not isinstance(kernel, str):
        matrix = as_float64("kernel", kernel, dims=2).detach().cpu()
        if tuple(matrix.shape) != tuple(order.Q.shape):
            raise ValueError(
                f"`kernel` must have shape {tuple(order.Q.shape)}, got {tuple(matrix.shape)}."
            )
        return matrix
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    if kernel == "preact":
        return _semidefinite(order.Q)
    if kernel == "rbf":
        return gaussian_kernel(order.Q, jitter=0.0)
    gram = _semidefinite(torch.from_numpy(activation.pair(order.Q.numpy())))
    return gram if kernel == "act" else torch.outer(order.v, order.v) * gram


def _semidefinite(matrix: Float[Tensor, "K K"]) -> Float[Tensor, "K K"]:
    """The nearest kernel without negative eigenvalues, which an integrator's round-off leaves."""
    values, vectors = torch.linalg.eigh(matrix)
    if float(values[0]) >= 0:
        return matrix
    clipped: Tensor = (vectors * values.clamp(min=0)) @ vectors.T
    return clipped


def random_inclusion(students: int, kept: int) -> Float[Tensor, "K K"]:
    """P(i ∈ S and j ∈ S) of a uniform set of k out of K, with P(i ∈ S) = k/K on the diagonal."""
    pair = kept * (kept - 1) / (students * (students - 1)) if students > 1 else 1.0
    matrix = torch.full((students, students), pair, dtype=torch.float64)
    return matrix.fill_diagonal_(kept / students)


def importance_set(order: OrderParameters, kept: int, score: Any = "readout") -> Int[Tensor, " k"]:
    """The k nodes of largest importance, ascending; ties go to the lower index.

    "readout": |v_k|, the norm of the outgoing weights. "readout-norm": |v_k| √Q_kk.
    "signed-readout": v_k with its sign, a different method that drops half of an odd student.
    Or a vector of K scores.
    """
    if not isinstance(score, str):
        values = as_float64("score", score, dims=1).detach().cpu()
        if len(values) != len(order.v):
            raise ValueError(f"`score` must have {len(order.v)} entries, got {len(values)}.")
    elif score not in SCORES:
        raise unknown("score", score, SCORES)
    elif score == "signed-readout":
        values = order.v
    else:
        norm = order.Q.diagonal().sqrt() if score == "readout-norm" else 1.0
        values = order.v.abs() * norm
    whole("kept", kept, low=1, high=len(values))
    return values.argsort(descending=True, stable=True)[:kept].sort().values


def subset_error(system: NodeSystem, kept: ndarray, readout: ndarray | None = None) -> float:
    """ε of the student with the nodes `kept`, with their trained readout or another one."""
    u = system.readout[kept] if readout is None else readout
    gram = system.gram[np.ix_(kept, kept)]
    return 0.5 * float(u @ gram @ u - 2 * u @ system.cross[kept] + system.power)


def expected_error(system: NodeSystem, pairs: Float[ndarray, "K K"]) -> float:
    """E ε = ½ [Σ_ij π_ij v_i v_j G_ij − 2 Σ_i π_i v_i h_i + t] over a random kept set."""
    v = system.readout
    quadratic = float(v @ (pairs * system.gram) @ v)
    return 0.5 * (quadratic - 2 * float(pairs.diagonal() @ (v * system.cross)) + system.power)


def reweighted_readout(
    system: NodeSystem, kept: Int[ndarray, "sets k"], mode: str
) -> Float[ndarray, "sets k"]:
    """Least-squares readouts u_S of many kept sets S, D what each removes.

    "preact": v_S + Q_SS⁻¹ Q_SD v_D. "act": v_S + G_SS⁻¹ G_SD v_D, the best reproduction of the
    unpruned student. "teacher": G_SS⁻¹ h_S, the best readout there is. Inverses are
    pseudo-inverses with relative cut-off 1e-10, for kept nodes that run parallel.
    """
    if mode not in REWEIGHTS:
        raise unknown("reweighting", mode, REWEIGHTS)
    matrix = system.overlap if mode == "preact" else system.gram
    block = matrix[kept[:, :, None], kept[:, None, :]]
    inverse = np.linalg.pinv(block, rcond=PARALLEL, hermitian=True)
    if mode == "teacher":
        best: ndarray = (inverse @ system.cross[kept][:, :, None])[:, :, 0]
        return best
    # Only what is removed is regressed. A_SS⁻¹ A_S v would project v_S itself where A_SS is
    # singular, which moves the outputs of parallel nodes: A knows pre-activations, outputs do not
    # follow them linearly.
    own = system.readout[kept]
    removed = (matrix @ system.readout)[kept] - (block @ own[:, :, None])[:, :, 0]
    result: ndarray = own + (inverse @ removed[:, :, None])[:, :, 0]
    return result


def reweighted_errors(
    system: NodeSystem, kept: Int[ndarray, "sets k"], mode: str | None
) -> Float[ndarray, " sets"]:
    """ε of many kept sets, with or without a least-squares readout."""
    values = np.empty(len(kept))
    for start in range(0, len(kept), BLOCK):
        part = kept[start : start + BLOCK]
        u = system.readout[part] if mode is None else reweighted_readout(system, part, mode)
        gram = system.gram[part[:, :, None], part[:, None, :]]
        quadratic = np.einsum("si,sij,sj->s", u, gram, u)
        linear = np.einsum("si,si->s", u, system.cross[part])
        values[start : start + BLOCK] = 0.5 * (quadratic - 2 * linear + system.power)
    return values


def all_sets(students: int, kept: int) -> Int[ndarray, "sets k"]:
    """Every set of k out of K, one per row, in lexicographic order."""
    return np.array(list(itertools.combinations(range(students), kept)), dtype=np.int64)


def reweighted_error(
    system: NodeSystem,
    kept: int,
    mode: str,
    *,
    kernel: Float[Tensor, "K K"] | None,
    kernel_is_gram: bool = False,
    floor: float | None = None,
    draws: int = 2000,
    generator: Generator | None = None,
) -> tuple[float, float | None]:
    """E ε after a least-squares readout, over uniform sets or a k-DPP; and its standard error.

    The readout depends on the set, so inclusion probabilities do not suffice. With the kernel
    G = U diag(λ) Uᵀ the k-DPP average of the projector onto the kept nodes is diagonal, with the
    eigenvector probabilities q_n, and the sum over sets is closed:

        act:     ε_full + Σ_n (1 − q_n) [v̂_n ĥ_n − ½ λ_n v̂_n²],  v̂ = Uᵀ v, ĥ = Uᵀ h
        teacher: ½ [t − Σ_n q_n ĥ_n²/λ_n]

    Otherwise all sets are enumerated (up to 200 000), or `draws` of them sampled.

    References:
        Deshpande et al. (2006) for the projector identity; derived in docs/teacher_student.md.
    """
    students = len(system.readout)
    if mode not in REWEIGHTS:
        raise unknown("reweighting", mode, REWEIGHTS)
    if kernel_is_gram and mode != "preact":
        closed = _closed_form(system, kept, mode)
        if closed is not None:
            return closed, None
    if math.comb(students, kept) <= ENUMERATE:
        sets = all_sets(students, kept)
        weight = np.full(len(sets), 1 / len(sets))
        if kernel is not None:
            weight = set_probabilities(kernel.numpy(), sets, floor)
        return float(weight @ reweighted_errors(system, sets, mode)), None
    if generator is None:
        raise ValueError(
            f"{math.comb(students, kept)} sets are too many to enumerate: the average is taken "
            f"over {draws} random ones, for which `generator` is needed. Pass a torch.Generator."
        )
    drawn = np.empty((whole("draws", draws, low=2), kept), dtype=np.int64)
    process = None if kernel is None else KDPP(kernel, floor=floor)
    for n in range(draws):
        if process is None:
            chosen = torch.randperm(students, generator=generator)[:kept].sort().values
        else:
            chosen = process.sample(kept, generator=generator)
        drawn[n] = chosen.numpy()
    values = reweighted_errors(system, drawn, mode)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(draws))


def set_probabilities(
    kernel: Float[ndarray, "K K"], sets: Int[ndarray, "sets k"], floor: float | None
) -> Float[ndarray, " sets"]:
    """P(S) ∝ det L_S of each set; a kernel of too low rank needs the floor that KDPP takes."""
    process = KDPP(kernel, floor=floor)
    size = sets.shape[1]
    if size == len(kernel):  # one set, whatever its determinant
        return np.ones(1)
    process.inclusion(size)  # raises, or warns of the floor, where k exceeds the rank
    if floor is not None and size > process.rank:
        kernel = kernel + floor * float(kernel.diagonal().mean()) * np.eye(len(kernel))
    sign, log = np.linalg.slogdet(kernel[sets[:, :, None], sets[:, None, :]])
    log = np.where(sign > 0, log, -np.inf)
    weight = np.exp(log - log.max())
    result: ndarray = weight / weight.sum()
    return result


def _closed_form(system: NodeSystem, kept: int, mode: str) -> float | None:
    values, vectors = np.linalg.eigh(system.gram)
    if int((values > PARALLEL * values[-1]).sum()) < len(values):
        return None  # parallel nodes: the pseudo-inverse cuts off, enumerate instead
    chosen = KDPP(np.diag(values)).inclusion(kept).numpy()
    v, h = vectors.T @ system.readout, vectors.T @ system.cross
    if mode == "teacher":
        return 0.5 * (system.power - float(chosen @ (h * h / values)))
    full = 0.5 * float(v @ (values * v) - 2 * v @ h + system.power)
    return full + float((1 - chosen) @ (v * h - 0.5 * values * v * v))
