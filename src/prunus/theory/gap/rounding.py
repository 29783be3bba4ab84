"""How far the computed outputs of two networks can be from those of real arithmetic."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.theory.gap.convolution import Geometry, copies
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

__all__ = ["rounding_at", "rounding_error"]

Norms = Callable[[LinearPair], LayerNorms]
EXACT = ("identity", "relu")  # activations that do not round


def rounding_error(
    stages: Sequence[Stage],
    radius: float,
    centre: Tensor,
    unit: float,
    norms: Norms = layer_norms,
    *,
    entry: float = 0.0,
) -> float:
    """Bound on ‖computed F − F‖ + ‖computed f − f‖ over the ball in arithmetic of roundoff u.

    Standard error analysis: an inner product of length n errs by γ_{n+2} |a|·|b|,
    γ_n = n u / (1 − n u), summation in any order, and by n times the least step between numbers
    where products underflow; ‖|W|‖ is bounded by min(‖W‖_F, √(‖W‖₁‖W‖_∞)).
    Weights and inputs are taken as stored; `entry` is the relative error of the inputs of the
    pruned network, where it reads them rounded.

    References:
        Higham (2002), Accuracy and Stability of Numerical Algorithms, §3.1.
    """
    none = torch.zeros(len(centre), dtype=torch.float64)
    starts = (none, none + entry * (float(centre.norm()) + radius))
    ends = [
        _rounding(stages, _Points(radius, centre, start), unit, pruned, norms)
        for pruned, start in zip((False, True), starts, strict=True)
    ]
    return sum(float(end.error.max()) for end in ends)


def rounding_at(
    stages: Sequence[Stage],
    samples: Tensor,
    unit: float,
    *,
    pruned: bool,
    norms: Norms = layer_norms,
    entry: float = 0.0,
) -> Float[Tensor, " samples"]:
    """As `rounding_error`, for one of the two networks at each sample.

    Args:
        stages: the network.
        samples: inputs, batch first.
        unit: roundoff u.
        pruned: of the pruned network.
        norms: of the layers.
        entry: relative error of the inputs themselves, where the network reads them rounded.
    """
    start = entry * samples.flatten(1).norm(dim=1)
    found = _rounding(stages, _Points(0.0, samples, start), unit, pruned, norms)
    return found.error


@dataclass(frozen=True, eq=False)
class _Points:
    """Values of real arithmetic, a radius around each, and the rounding error so far.

    Attributes:
        radius: of a ball around each value.
        centre: the values, batch first.
        error: bound on ‖computed − real‖ for each, over its ball.
    """

    radius: float
    centre: Tensor
    error: Float[Tensor, " samples"]

    @property
    def size(self) -> Float[Tensor, " samples"]:
        """Bound on the norm of the real values."""
        lengths: Tensor = self.centre.flatten(1).norm(dim=1)
        return lengths + self.radius


def gamma(terms: int, unit: float) -> float:
    """γ_n = n u / (1 − n u); ∞ where n u ≥ 1/2, beyond which the analysis says nothing."""
    return math.inf if terms * unit >= 0.5 else terms * unit / (1 - terms * unit)


def step(unit: float) -> float:
    """Largest absolute error of an operation whose result is too small for relative accuracy.

    Arithmetic of 11 binary digits or fewer may be float16, whose numbers lie 2⁻²⁴ apart near 0;
    that of float32 and bfloat16 may flush below 2⁻¹²⁶.
    """
    return 2.0**-24 if unit >= 2.0**-11 else 2.0**-126 if unit >= 2.0**-24 else 2.0**-1022


def _rounding(
    stages: Sequence[Stage], at: _Points, unit: float, pruned: bool, norms: Norms
) -> _Points:
    for stage in stages:
        if isinstance(stage, LinearPair):
            at = _round_linear(stage, at, unit, pruned, norms(stage))
        elif isinstance(stage, Pointwise):
            phi = stage.activation
            centre, root = phi.function(at.centre), math.sqrt(at.centre[0].numel())
            lip = phi.lipschitz
            error = lip * at.error + phi.defect * root
            if phi.name not in EXACT:
                # against the input: 1 + erf(x/√2) of a GELU cancels where its value is small
                size = (lip * at.size + phi.at_zero * root).clamp(max=phi.sup * root)
                error = error + 8 * unit * size + step(unit) * root
            at = _Points(lip * at.radius, centre, error)
        elif isinstance(stage, Lipschitz):
            gain, error = stage.gain, stage.gain * at.error
            outputs = stage.function(at.centre)
            if stage.terms:
                error = error + gamma(stage.terms + 2, unit) * gain * (at.size + at.error)
                error = error + step(unit) * stage.terms * math.sqrt(outputs[0].numel())
            at = _Points(gain * at.radius, outputs, error)
        else:
            left = _rounding(stage.shortcut, at, unit, pruned, norms)
            right = _rounding(stage.branch, at, unit, pruned, norms)
            radius = stage.size(left.radius, right.radius)
            both = _Points(radius, stage.join(left.centre, right.centre), left.error)
            error = stage.sizes(left.error, right.error)
            if stage.axis is None:  # a sum rounds, a concatenation does not
                error = (1 + unit) * error + unit * both.size
            at = _Points(radius, both.centre, error)
    return at


def _round_linear(
    stage: LinearPair, at: _Points, unit: float, pruned: bool, norms: LayerNorms
) -> _Points:
    weight = stage.pruned_weight if pruned else stage.weight
    shift = stage.pruned_bias if pruned else stage.bias
    bias = shift if stage.offsets is None else stage.offsets
    norm = norms.pruned if pruned else norms.dense
    length = weight[0].numel() + 2 + (0 if stage.offsets is None else 8)  # 8: of a batch norm
    outputs = apply_linear(stage, weight, shift, at.centre)
    if math.isinf(gamma(length, unit)):
        return _Points(norm * at.radius, outputs, torch.full_like(at.error, math.inf))
    absolute = (
        spectral_norm(weight, method="cheap").value
        if stage.geometry is None
        else _absolute_conv_norm(weight, stage.geometry)
    )
    offset = 0.0
    if bias is not None:
        offset = float(bias.norm()) * math.sqrt(outputs[0, 0].numel())
    error = norm * at.error + gamma(length, unit) * (absolute * (at.size + at.error) + offset)
    error = error + step(unit) * length * math.sqrt(outputs[0].numel())
    return _Points(norm * at.radius, outputs, error)


def _absolute_conv_norm(kernel: Tensor, geometry: Geometry) -> float:
    """Norm bound of the convolution with the absolute kernel: its row and column sums (Schur)."""
    _, factor = copies(geometry, kernel.shape[2:])
    absolute = kernel.abs()
    rows = absolute.flatten(1).sum(dim=1).max()
    columns = absolute.sum(dim=(0, 2, 3)).max()  # over all groups: an overestimate
    return factor * math.sqrt(float(rows * columns)) * (1 + 4 * kernel.numel() * EPSILON)
