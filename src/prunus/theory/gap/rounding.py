"""How far the computed outputs of two networks can be from those of real arithmetic."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from prunus.theory.gap.norms import EPSILON, spectral_norm
from prunus.theory.gap.stages import (
    LayerNorms,
    LinearPair,
    Lipschitz,
    Pointwise,
    Stage,
    apply_linear,
    layer_norms,
)

__all__ = ["rounding_error"]


def rounding_error(
    stages: Sequence[Stage],
    radius: float,
    centre: Tensor,
    unit: float,
    norms: Callable[[LinearPair], LayerNorms] = layer_norms,
) -> float:
    """Bound on ‖computed F − F‖ + ‖computed f − f‖ over the ball in arithmetic of roundoff u.

    Standard error analysis: an inner product of length n errs by γ_{n+2} |a|·|b|,
    γ_n = n u / (1 − n u), summation in any order; ‖|W|‖ is bounded by min(‖W‖_F, √(‖W‖₁‖W‖_∞)).
    Weights and inputs are taken as stored.

    References:
        Higham (2002), Accuracy and Stability of Numerical Algorithms, §3.1.
    """
    return sum(
        _rounding(stages, _Point(radius, centre, 0.0), unit, pruned, norms).error
        for pruned in (False, True)
    )


@dataclass(frozen=True, eq=False)
class _Point:
    """Radius around a centre value, and the rounding error so far."""

    radius: float
    centre: Tensor
    error: float

    @property
    def size(self) -> float:
        return float(self.centre.norm()) + self.radius


def _rounding(
    stages: Sequence[Stage],
    at: _Point,
    unit: float,
    pruned: bool,
    norms: Callable[[LinearPair], LayerNorms],
) -> _Point:
    for stage in stages:
        if isinstance(stage, LinearPair):
            at = _round_linear(stage, at, unit, pruned, norms(stage))
        elif isinstance(stage, Pointwise):
            phi = stage.activation
            centre, root = phi.function(at.centre), math.sqrt(at.centre.numel())
            lip = phi.lipschitz
            error = lip * at.error
            if phi.name not in ("identity", "relu"):  # those are exact
                size = min(float(centre.norm()) + lip * at.radius, phi.sup * root)
                error += 8 * unit * (size + phi.at_zero * root)
            at = _Point(lip * at.radius, centre, error)
        elif isinstance(stage, Lipschitz):
            gain = stage.gain
            new = _Point(gain * at.radius, stage.function(at.centre), gain * at.error)
            extra = 0.0 if stage.name == "identity" else 64 * unit * gain * at.size
            at = replace(new, error=new.error + extra)
        else:
            left = _rounding(stage.shortcut, at, unit, pruned, norms)
            right = _rounding(stage.branch, at, unit, pruned, norms)
            radius = stage.size(left.radius, right.radius)
            both = _Point(radius, stage.join(left.centre, right.centre), 0.0)
            error = stage.size(left.error, right.error)
            if stage.axis is None:  # a sum rounds, a concatenation does not
                error = (1 + unit) * error + unit * both.size
            at = replace(both, error=error)
    return at


def _round_linear(
    stage: LinearPair, at: _Point, unit: float, pruned: bool, norms: LayerNorms
) -> _Point:
    weight = stage.pruned_weight if pruned else stage.weight
    shift = stage.pruned_bias if pruned else stage.bias
    bias = shift if stage.offsets is None else stage.offsets
    norm = norms.pruned if pruned else norms.dense
    length = weight[0].numel() + 2 + (0 if stage.offsets is None else 8)  # 8: of a batch norm
    if length * unit >= 0.5:
        return _Point(math.inf, at.centre, math.inf)
    gamma = length * unit / (1 - length * unit)
    absolute = (
        spectral_norm(weight, method="cheap").value
        if stage.geometry is None
        else _absolute_conv_norm(weight)
    )
    outputs = apply_linear(stage, weight, shift, at.centre)
    offset = 0.0
    if bias is not None:
        offset = float(bias.norm()) * math.sqrt(outputs[0, 0].numel())
    error = norm * at.error + gamma * (absolute * (at.size + at.error) + offset)
    return _Point(norm * at.radius, outputs, error)


def _absolute_conv_norm(kernel: Tensor) -> float:
    """Norm bound of the convolution with the absolute kernel: its row and column sums (Schur)."""
    absolute = kernel.abs()
    rows = absolute.flatten(1).sum(dim=1).max()
    columns = absolute.sum(dim=(0, 2, 3)).max()  # over all groups: an overestimate
    return math.sqrt(float(rows * columns)) * (1 + 4 * kernel.numel() * EPSILON)
