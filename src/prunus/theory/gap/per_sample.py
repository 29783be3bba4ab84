"""Bounds and predictions of the gap at given inputs, from the layers' own errors there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.theory.gap.chain import chain_norm
from prunus.theory.gap.stages import (
    Branches,
    LayerNorms,
    LinearPair,
    Lipschitz,
    Pointwise,
    Stage,
    apply_linear,
    bias_shift,
    layer_norms,
    run,
)

__all__ = [
    "chain_gains",
    "first_order_gaps",
    "pairwise_unchanged",
    "pointwise_bound",
    "sample_bound",
]

Norms = Callable[[LinearPair], LayerNorms]
Gains = Callable[[tuple[Stage, ...]], list[float] | None]


def _injections(
    stages: Sequence[Stage], x: Tensor, norms: Norms, error: Tensor
) -> tuple[Tensor, Tensor]:
    """Dense output and per-sample bound on the gap, from ‖D h(x) + δb‖ and norms of V.

    Neuron a of a matrix errs by at most β_a = |(D h + δb)_a| + ‖v_a‖ e before the activation. One
    with z_a + β_a ≤ 0 is silent in both networks and contributes nothing after a ReLU; one with
    z_a < 0 at most z_a + β_a.
    """
    coordinates: Tensor | None = None  # β of the matrix just passed
    for stage in stages:
        if isinstance(stage, LinearPair):
            difference = stage.weight - stage.pruned_weight
            shift = bias_shift(stage)
            added = apply_linear(stage, difference, shift, x)
            if stage.geometry is None:
                coordinates = added.abs() + stage.pruned_weight.norm(dim=1) * error[:, None]
            error = norms(stage).pruned * error + added.flatten(1).norm(dim=1)
            x = apply_linear(stage, stage.weight, stage.bias, x)
            if stage.geometry is None:
                continue
        elif isinstance(stage, Pointwise):
            error = stage.activation.lipschitz * error
            if coordinates is not None:
                error = torch.minimum(error, _by_coordinate(stage, x, coordinates))
            x = stage.activation.function(x)
        elif isinstance(stage, Lipschitz):
            x, error = stage.function(x), stage.gain * error
        else:
            left, first = _injections(stage.shortcut, x, norms, error)
            right, second = _injections(stage.branch, x, norms, error)
            x, error = stage.join(left, right), stage.sizes(first, second)
        coordinates = None
    return x, error


def _by_coordinate(stage: Pointwise, z: Tensor, errors: Tensor) -> Float[Tensor, " samples"]:
    """Bound on ‖φ(z) − φ(ẑ)‖ per sample from |z_a − ẑ_a| ≤ errors_a."""
    reached = stage.activation.lipschitz * errors
    if stage.activation.name == "relu":
        reached = torch.minimum(reached, (z + errors).clamp_min(0))
    bounds: Tensor = reached.norm(dim=1)
    return bounds


def chain_gains(stages: tuple[Stage, ...]) -> list[float] | None:
    """CP(V_{i+1}, …, V_l) for each matrix of a plain chain; None where it is none."""
    kept = [s for s in stages if not (isinstance(s, Lipschitz) and s.moves)]
    pairs, activations = kept[::2], kept[1::2]
    plain = all(isinstance(s, LinearPair) and s.geometry is None for s in pairs)
    if not kept or not plain or not all(isinstance(s, Pointwise) for s in activations):
        return None
    matrices = [s.pruned_weight for s in pairs if isinstance(s, LinearPair)]
    slopes = [s.activation for s in activations if isinstance(s, Pointwise)]
    if len(matrices) > 8 and max(max(m.shape) for m in matrices) > 2000:
        return None
    outer = slopes.pop().lipschitz if len(slopes) == len(matrices) else 1.0
    gains = []
    for i in range(len(matrices)):
        if i + 1 == len(matrices):
            gains.append(outer)
            continue
        identity = torch.eye(len(matrices[i]), dtype=torch.float64)
        chain = [identity, *matrices[i + 1 :]]
        gains.append(outer * chain_norm(chain, slopes[i:]))
    return gains


def pointwise_bound(
    stages: Sequence[Stage],
    samples: Tensor,
    norms: Norms = layer_norms,
    gains_of: Gains = chain_gains,
) -> Float[Tensor, " samples"]:
    """Bound on the gap at each sample without running the pruned network.

    e(x) ≤ Σ_i CP(V_{i+1}, …, V_l) ‖D_i h_{i−1}(x) + δb_i‖, the least of norm products and chain.
    """
    _, error = _injections(stages, samples, norms, torch.zeros(len(samples), dtype=torch.float64))
    gains = gains_of(tuple(stages))
    if gains is None:
        return error
    return torch.minimum(error, sum_injections(stages, samples, gains))


def sum_injections(
    stages: Sequence[Stage], samples: Tensor, gains: Sequence[float]
) -> Float[Tensor, " samples"]:
    """Σ_i gain_i ‖D_i h_{i−1}(x) + δb_i‖ along a plain chain."""
    total, x = torch.zeros(len(samples), dtype=torch.float64), samples
    at = iter(gains)
    for stage in stages:
        if isinstance(stage, LinearPair):
            difference = stage.weight - stage.pruned_weight
            added = apply_linear(stage, difference, bias_shift(stage), x).flatten(1).norm(dim=1)
            total = total + next(at) * added
        x = run([stage], x)
    return total


def sample_bound(
    stages: Sequence[Stage],
    samples: Tensor,
    norms: Norms = layer_norms,
    gains_of: Gains = chain_gains,
) -> tuple[float, str]:
    """Bound on the root mean square gap of a sample, and its route.

    √mean ‖F − f‖² ≤ Σ_i CP(V_{i+1}, …, V_l) r_i, r_i the rms of ‖D_i h_{i−1} + δb_i‖ (Minkowski).
    """
    bounds = {"layer errors, product": _rms_product(stages, samples, norms)}
    gains = gains_of(tuple(stages))
    if gains is not None:
        total, x, at = 0.0, samples, iter(gains)
        for stage in stages:
            if isinstance(stage, LinearPair):
                total += next(at) * _rms_injection(stage, x)
            x = run([stage], x)
        bounds["layer errors, chain"] = total
    route = min(bounds, key=bounds.__getitem__)
    return bounds[route], route


def _rms_injection(stage: LinearPair, x: Tensor) -> float:
    difference = stage.weight - stage.pruned_weight
    added = apply_linear(stage, difference, bias_shift(stage), x).flatten(1)
    return float(added.square().sum(dim=1).mean().sqrt())


def _rms_product(stages: Sequence[Stage], x: Tensor, norms: Norms, error: float = 0.0) -> float:
    for stage in stages:
        if isinstance(stage, LinearPair):
            error = norms(stage).pruned * error + _rms_injection(stage, x)
        elif isinstance(stage, Pointwise):
            error = stage.activation.lipschitz * error
        elif isinstance(stage, Lipschitz):
            error = stage.gain * error
        else:
            left = _rms_product(stage.shortcut, x, norms, error)
            error = stage.size(left, _rms_product(stage.branch, x, norms, error))
        x = run([stage], x)
    return error


def pairwise_unchanged(
    stages: Sequence[Stage],
    samples: Tensor,
    norms: Norms = layer_norms,
    *,
    rounding: float | Float[Tensor, " samples"] = 0.0,
) -> Bool[Tensor, " samples"]:
    """Which predictions cannot change, without running the pruned network.

    F_c − F_j > |(D_l h)_c − (D_l h)_j| + ‖v_c − v_j‖ e_{l−1}(x) + √2 ρ(x) for all j ≠ c, v the
    rows of the last matrix of the pruned network and ρ the `rounding` of both networks' outputs;
    none where the last stage is no matrix.
    """
    x = samples
    last = stages[-1]
    if not isinstance(last, LinearPair) or last.geometry is not None:
        return torch.zeros(len(x), dtype=torch.bool)
    before = stages[:-1]
    hidden = run(before, x)
    error = pointwise_bound(before, x, norms)
    added = apply_linear(last, last.weight - last.pruned_weight, bias_shift(last), hidden)
    outputs = run([last], hidden)
    best = outputs.argmax(dim=1)
    rows = last.pruned_weight
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(rows, rows, compute_mode=exact)[best]
    row = torch.arange(len(x))
    lead = outputs[row, best][:, None] - outputs
    reach = (added[row, best][:, None] - added).abs() + apart * error[:, None]
    shaken = torch.as_tensor(rounding, dtype=torch.float64).expand(len(x))
    reach = reach * (1 + 1e-12) + math.sqrt(2) * shaken[:, None]
    safe = lead > reach
    safe[row, best] = True
    return safe.all(dim=1)


def first_order_gaps(stages: Sequence[Stage], samples: Tensor) -> Float[Tensor, " samples"]:
    """‖Σ_i J_i D_i h_{i−1}(x)‖ per sample: the gap to first order in the removed weights.

    The directional derivative of the output along W → V.
    """

    def output(step: Tensor) -> Tensor:
        return run(_between(stages, step), samples)

    start = torch.zeros((), dtype=torch.float64)
    _, slope = torch.autograd.functional.jvp(output, start, torch.ones_like(start))  # type: ignore[no-untyped-call]
    gaps: Tensor = slope.flatten(1).norm(dim=1)
    return gaps


def _between(stages: Sequence[Stage], step: Tensor) -> tuple[Stage, ...]:
    """The network with weights W + step (V − W)."""
    moved: list[Stage] = []
    for stage in stages:
        if isinstance(stage, LinearPair):
            weight = stage.weight + step * (stage.pruned_weight - stage.weight)
            bias = stage.bias
            shift = bias_shift(stage)
            if shift is not None:
                zero = torch.zeros(len(stage.weight), dtype=torch.float64)
                bias = (zero if bias is None else bias) - step * shift
            moved.append(replace(stage, weight=weight, bias=bias))
        elif isinstance(stage, Branches):
            branch, shortcut = _between(stage.branch, step), _between(stage.shortcut, step)
            moved.append(replace(stage, branch=branch, shortcut=shortcut))
        else:
            moved.append(stage)
    return tuple(moved)
