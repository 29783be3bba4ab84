"""The generalisation error after pruning, in closed form, for six methods."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from prunus.check import as_float64, fraction, positive, unknown, whole
from prunus.dpp import KDPP
from prunus.theory.teacher_student.activation import Activation, activation_of
from prunus.theory.teacher_student.edges import (
    EdgeMoments,
    Rule,
    edge_moments,
    keep_probabilities,
    moments_of_rule,
)
from prunus.theory.teacher_student.error import generalisation_error
from prunus.theory.teacher_student.nodes import (
    REWEIGHTS,
    expected_error,
    importance_set,
    node_kernel,
    node_system,
    random_inclusion,
    reweighted_error,
    reweighted_errors,
)
from prunus.theory.teacher_student.order import OrderParameters, Weights, normalised
from prunus.theory.teacher_student.sampled import Prior, sample_coordinates

__all__ = ["METHODS", "PrunedError", "matched_density", "prune_edges", "pruned_error"]

NODE_METHODS = ("random-node", "importance-node", "dpp-node")
EDGE_METHODS = {"random-edge": "random", "magnitude-edge": "magnitude", "dpp-edge": "dpp"}
METHODS = (*NODE_METHODS, *EDGE_METHODS)
LEVELS = ("gaussian", "sampled", "empirical")
Level = Literal["gaussian", "sampled", "empirical"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PrunedError:
    """The error of a pruned student, and all that was assumed about it.

    Attributes:
        error: ε (half the mean squared error), expected over the mask where it is random.
        method: as in `METHODS`, or "rule".
        kept: nodes kept (node methods) or the share of weights kept (edge methods).
        density: kept nodes over K, or the share of weights.
        reweight: least-squares mode of the readout, or None.
        kernel: DPP kernel of a node method, or None.
        level: how the weights' law entered an edge method; None for nodes, which need none.
        normalised: students were scaled to norm √N before pruning.
        counted_noise: σ of the label noise counted in `error` (as σ²/2); 0 counts none.
        order: order parameters after edge pruning; None for node methods.
        inclusion: probability of each node to be kept; None for edge methods.
        standard_error: of an average over sampled sets; None where `error` is exact.
        notes: what the reader should know, in words.
    """

    error: Float[Tensor, ""]
    method: str
    kept: float
    density: float
    reweight: str | None = None
    kernel: str | None = None
    level: str | None = None
    normalised: bool = False
    counted_noise: float = 0.0
    order: OrderParameters | None = None
    inclusion: Float[Tensor, " K"] | None = None
    standard_error: float | None = None
    notes: tuple[str, ...] = ()

    def __float__(self) -> float:
        return float(self.error)


def matched_density(kept: int, students: int, inputs: int | None = None) -> float:
    """The edge density with as many parameters as `kept` of K nodes.

    k nodes keep k (N + 1) parameters; q weights per node keep K q + K; so q = (k N + k − K)/K and
    p = q/N, which goes to k/K for many inputs (`inputs` None).
    """
    whole("kept", kept, low=1, high=students)
    if inputs is None:
        return kept / students
    n = whole("inputs", inputs, low=1)
    return (kept * n + kept - students) / (students * n)


def pruned_error(
    order: OrderParameters,
    method: str | Rule,
    kept: float | None = None,
    *,
    activation: str | Activation = "erf",
    reweight: str | None = None,
    kernel: Any = "preact",
    score: Any = "readout",
    floor: float | None = None,
    normalise: bool = False,
    gain: Any = None,
    shared_mask: bool = False,
    level: Level = "gaussian",
    weights: Weights | None = None,
    prior: str | Prior = "gaussian",
    samples: int = 400_000,
    draws: int = 2000,
    counted_noise: float = 0.0,
    generator: Generator | None = None,
) -> PrunedError:
    """The generalisation error after pruning the first layer, for many inputs.

    Node methods average ε = ½ [Σ π_ij v_i v_j G_ij − 2 Σ π_i v_i h_i + t] over the kept set; edge
    methods rescale the order parameters, Q_ii → m Q_ii, Q_ij → √(Q_ii Q_jj) h(ρ_ij), R → m R.

    Args:
        order: the trained student.
        method: "random-node", "importance-node", "dpp-node", "random-edge", "magnitude-edge",
            "dpp-edge", or a function from standardised weights to keep probabilities.
        kept: whole number of nodes in 1..K, or density of edges in (0, 1]; None for a function,
            which brings its own.
        activation: the units' nonlinearity.
        reweight: least squares on the readout of the kept nodes: "preact", "act", "teacher" or
            None. With independent inputs it changes nothing for edges, and a note says so.
        kernel: of "dpp-node": "preact", "act", "output", "rbf", or a K × K matrix.
        score: of "importance-node": "readout" (|v|), "readout-norm", "signed-readout", or K scores.
        floor: as in `prunus.dpp.KDPP`, for more kept nodes than the kernel's rank.
        normalise: scale students to norm √N first (v stays).
        gain: factors s_i of the pruned w_i (edges): K numbers, or "norm" to restore each norm.
        shared_mask: one mask for all nodes ("random-edge" only).
        level: law of the weights for edge methods: "gaussian" (closed forms, for a Gaussian
            teacher), "sampled" (coordinates drawn from `prior`), "empirical" (those of `weights`).
        weights: one seed's weights, for level "empirical".
        prior: of the teacher's coordinates for level "sampled": "gaussian", "sign", or a function.
        samples: number of coordinates for level "sampled".
        draws: number of sets where they are too many to enumerate.
        counted_noise: σ of label noise to count, which adds σ²/2.
        generator: source of randomness, where sampling needs one.

    Raises:
        ValueError: an unknown name, k outside 1..K, a density outside (0, 1], or options that the
            method has no use for.

    References:
        Acharyya et al. (2021); Kulesza & Taskar (2012); derived in docs/teacher_student.md.
    """
    unit = activation_of(activation)
    noise = positive("counted_noise", counted_noise, zero=True)
    if reweight is not None and reweight not in REWEIGHTS:
        raise unknown("reweighting", reweight, REWEIGHTS)
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if not callable(method) and method not in METHODS:
        raise unknown("method", str(method), METHODS)
    if normalise:
        order = normalised(order)
        weights = None if weights is None else _normalised_weights(weights)
    if not callable(method) and method in NODE_METHODS:
        if gain is not None or shared_mask or level != "gaussian":
            raise ValueError(
                f"`gain`, `shared_mask` and `level` belong to edge methods, got them with "
                f"{method!r}. Leave them out."
            )
        found = _nodes(order, method, kept, unit, reweight, kernel, score, floor, draws, generator)
    else:
        found = _edges(
            order, method, kept, unit, shared_mask, level, weights, prior, samples, generator, gain
        )
        if reweight is not None:
            note = "with independent inputs, least squares leaves edge-pruned weights as they are"
            found = replace(found, notes=(*found.notes, note))
    return replace(
        found,
        error=found.error + 0.5 * noise**2,
        counted_noise=noise,
        normalised=normalise,
        reweight=reweight,
    )


def _nodes(
    order: OrderParameters,
    method: str,
    kept: Any,
    unit: Activation,
    reweight: str | None,
    kernel: Any,
    score: Any,
    floor: float | None,
    draws: int,
    generator: Generator | None,
) -> PrunedError:
    students = len(order.v)
    count = whole("kept", kept, low=1, high=students)
    system = node_system(order, unit)
    standard_error = None
    if method == "importance-node":
        chosen = importance_set(order, count, score)
        error = float(reweighted_errors(system, chosen.numpy()[None], reweight)[0])
        inclusion = torch.zeros(students, dtype=torch.float64)
        inclusion[chosen] = 1.0
    else:
        matrix = node_kernel(order, kernel, unit) if method == "dpp-node" else None
        if matrix is None:
            pairs = random_inclusion(students, count)
        else:
            pairs = KDPP(matrix, floor=floor).pair_inclusion(count)
        inclusion = pairs.diagonal().clone()
        if reweight is None:
            error = expected_error(system, pairs.numpy())
        else:
            error, standard_error = reweighted_error(
                system,
                count,
                reweight,
                kernel=matrix,
                kernel_is_gram=isinstance(kernel, str) and kernel == "act" and matrix is not None,
                floor=floor,
                draws=draws,
                generator=generator,
            )
    named = kernel if isinstance(kernel, str) else "given"
    return PrunedError(
        error=torch.tensor(error, dtype=torch.float64),
        method=method,
        kept=count,
        density=count / students,
        kernel=named if method == "dpp-node" else None,
        inclusion=inclusion,
        standard_error=standard_error,
    )


def _edges(
    order: OrderParameters,
    method: str | Rule,
    kept: float | None,
    unit: Activation,
    shared_mask: bool,
    level: str,
    weights: Weights | None,
    prior: str | Prior,
    samples: int,
    generator: Generator | None,
    gain: Any,
) -> PrunedError:
    if callable(method):
        if kept is not None or level != "gaussian" or shared_mask:
            raise ValueError(
                "A rule brings its own density and works at the Gaussian level: leave `kept`, "
                "`level` and `shared_mask` out."
            )
        moments = moments_of_rule(method)
        pruned, density, name = prune_edges(order, moments), moments.density, "rule"
    else:
        if kept is None:
            raise ValueError("`kept`, the density of an edge method, is missing. Pass it.")
        density, name = fraction("kept", kept, one=True), method
        rule = EDGE_METHODS[method]
        if level == "gaussian":
            pruned = prune_edges(order, edge_moments(rule, density, shared_mask=shared_mask))
        else:
            if level == "empirical":
                if weights is None or weights.student.ndim != 2:
                    raise ValueError(
                        "Level 'empirical' needs `weights` of one seed. Pass Weights with student "
                        "weights of shape (K, N)."
                    )
                student, teacher = weights.student, weights.teacher
            else:
                if generator is None:
                    raise ValueError("Level 'sampled' needs `generator`. Pass a torch.Generator.")
                student, teacher = sample_coordinates(
                    order, prior, samples=samples, generator=generator
                )
            pruned = _measured(order, student, teacher, rule, density, shared_mask)
    pruned = _with_gain(order, pruned, gain)
    return PrunedError(
        error=generalisation_error(pruned, activation=unit),
        method=name,
        kept=density,
        density=density,
        level=level,
        order=pruned,
    )


def prune_edges(order: OrderParameters, moments: EdgeMoments) -> OrderParameters:
    """Order parameters after an edge rule with independent masks per node, Gaussian weights.

    Q′_ii = m Q_ii, Q′_ij = √(Q_ii Q_jj) h(ρ_ij), R′_in = m R_in.
    """
    norm = order.Q.diagonal().sqrt()
    outer = torch.outer(norm, norm)
    safe = torch.where(outer > 0, outer, torch.ones_like(outer))
    first, second = torch.triu_indices(len(norm), len(norm), 1)
    overlap = torch.zeros_like(order.Q)
    if len(first):
        rho = (order.Q / safe)[first, second].clamp(-1.0, 1.0).numpy()
        overlap[first, second] = torch.from_numpy(np.asarray(moments.across(rho)))
    overlap = (overlap + overlap.T) * outer
    overlap += torch.diag(moments.own * order.Q.diagonal())
    return replace(order, Q=overlap, R=moments.own * order.R)


def _measured(
    order: OrderParameters,
    student: Float[Tensor, "K N"],
    teacher: Float[Tensor, "M N"],
    rule: str,
    density: float,
    shared_mask: bool,
) -> OrderParameters:
    """Order parameters from coordinates and their keep probabilities, masks independent."""
    inputs = student.shape[1]
    probability = keep_probabilities(student, rule, density)
    kept = probability * student
    overlap = kept @ kept.T / inputs
    own = (probability * student.square()).mean(dim=1)
    if shared_mask:
        if rule != "random":
            raise ValueError(f"`shared_mask` fits the random rule only, got {rule!r}.")
        overlap = density * (student @ student.T) / inputs
    overlap = overlap - torch.diag(overlap.diagonal()) + torch.diag(own)
    return replace(order, Q=overlap, R=kept @ teacher.T / inputs, T=teacher @ teacher.T / inputs)


def _with_gain(before: OrderParameters, after: OrderParameters, gain: Any) -> OrderParameters:
    """Multiply the pruned w_i by s_i: Q′_ij s_i s_j and R′_in s_i."""
    if gain is None:
        return after
    if isinstance(gain, str):
        if gain != "norm":
            raise unknown("gain", gain, ["norm"])
        old, new = before.Q.diagonal(), after.Q.diagonal()
        factor = torch.where(new > 0, old / new, 1.0).sqrt()  # a dead node has no norm to restore
    else:
        factor = as_float64("gain", gain, dims=1)
        if len(factor) != len(before.v):
            raise ValueError(f"`gain` must have {len(before.v)} entries, got {len(factor)}.")
    return replace(after, Q=after.Q * torch.outer(factor, factor), R=after.R * factor[:, None])


def _normalised_weights(weights: Weights) -> Weights:
    norm = weights.student.square().mean(dim=-1, keepdim=True).sqrt()
    return replace(weights, student=weights.student / norm)
