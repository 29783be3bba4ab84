"""How far the computed outputs of two networks can be from those of real arithmetic."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    largest: float = math.inf,
) -> float:
    """Bound on ‖computed F − F‖ + ‖computed f − f‖ over the ball in arithmetic of roundoff u.

    Standard error analysis: an inner product of length n errs by γ_{n+2} |a|·|b|,
    γ_n = n u / (1 − n u), summation in any order, and by n times the least step between numbers
    where products underflow; ‖|W|‖ is bounded by min(‖W‖_F, √(‖W‖₁‖W‖_∞)).
    Weights and inputs are taken as stored; `entry` is the relative error of the inputs of the
    pruned network, where it reads them rounded. ∞ where a value, or a part of a sum, may exceed the
    `largest` number of the arithmetic.

    References:
        Higham (2002), Accuracy and Stability of Numerical Algorithms, §3.1.
    """
    none = torch.zeros(len(centre), dtype=torch.float64)
    starts = (none, none + entry * (float(centre.norm()) + radius))
    ends = [
        _rounding(stages, _entered(radius, centre, start, largest), unit, pruned, norms)
        for pruned, start in zip((False, True), starts, strict=True)
    ]
    return sum(float(_known(end.error).max()) for end in ends)


def rounding_at(
    stages: Sequence[Stage],
    samples: Tensor,
    unit: float,
    *,
    pruned: bool,
    norms: Norms = layer_norms,
    entry: float = 0.0,
    largest: float = math.inf,
) -> Float[Tensor, " samples"]:
    """As `rounding_error`, for one of the two networks at each sample.

    Args:
        stages: the network.
        samples: inputs, batch first.
        unit: roundoff u.
        pruned: of the pruned network.
        norms: of the layers.
        entry: relative error of the inputs themselves, where the network reads them rounded.
        largest: number of the arithmetic.
    """
    start = entry * samples.flatten(1).norm(dim=1)
    found = _rounding(stages, _entered(0.0, samples, start, largest), unit, pruned, norms)
    return _known(found.error)


def _known(error: Tensor) -> Tensor:
    """Where an unbounded error has met a layer of zeros, it is unbounded."""
    return torch.where(error.isnan(), math.inf, error)


@dataclass(frozen=True, eq=False)
class _Points:
    """Values of real arithmetic, a radius around each, and the rounding error so far.

    Attributes:
        radius: of a ball around each value.
        centre: the values, batch first.
        error: bound on ‖computed − real‖ for each, over its ball.
        largest: number of the arithmetic.
    """

    radius: float
    centre: Tensor
    error: Float[Tensor, " samples"]
    largest: float

    @property
    def size(self) -> Float[Tensor, " samples"]:
        """Bound on the norm of the real values."""
        lengths: Tensor = self.centre.flatten(1).norm(dim=1)
        return lengths + self.radius

    @property
    def most(self) -> Float[Tensor, " samples"]:
        """Bound on the size of every computed entry."""
        entries: Tensor = self.centre.flatten(1).abs().amax(dim=1)
        return entries + self.radius + self.error

    def within(self, most: Tensor) -> "_Points":
        """With an error of ∞ where numbers as large as this do not exist."""
        beyond = (most > self.largest) | (self.most > self.largest)
        return replace(self, error=self.error.masked_fill(beyond, math.inf))


def _entered(radius: float, centre: Tensor, error: Tensor, largest: float) -> _Points:
    """What a network reads."""
    found = _Points(radius, centre, error, largest)
    return found.within(found.most)


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
            at = _Points(lip * at.radius, centre, error, at.largest)
        elif isinstance(stage, Lipschitz):
            gain, error = stage.gain, stage.gain * at.error
            outputs = stage.function(at.centre)
            if stage.terms:
                error = error + gamma(stage.terms + 2, unit) * gain * (at.size + at.error)
                error = error + step(unit) * stage.terms * math.sqrt(outputs[0].numel())
            sums = math.sqrt(max(stage.terms, 1)) * (at.size + at.error)
            reached = sums if stage.terms else at.most
            at = _Points(gain * at.radius, outputs, error, at.largest).within(reached)
        else:
            left = _rounding(stage.shortcut, at, unit, pruned, norms)
            right = _rounding(stage.branch, at, unit, pruned, norms)
            radius = stage.size(left.radius, right.radius)
            joined = stage.join(left.centre, right.centre)
            both = _Points(radius, joined, left.error, at.largest)
            error = stage.sizes(left.error, right.error)
            if stage.axis is None:  # a sum rounds, a concatenation does not
                error = (1 + unit) * error + unit * both.size
            at = replace(both, error=error)
            at = at.within(at.most)
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
        unknown = torch.full_like(at.error, math.inf)
        return _Points(norm * at.radius, outputs, unknown, at.largest)
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
    found = _Points(norm * at.radius, outputs, error, at.largest)
    return found.within(_sums(stage, weight, bias, at.size + at.error))


def _sums(
    stage: LinearPair, weight: Tensor, bias: Tensor | None, size: Float[Tensor, " samples"]
) -> Float[Tensor, " samples"]:
    """Bound on every part of the sums Σ w x + b that the modules of a stage form."""
    factor = 1.0 if stage.geometry is None else copies(stage.geometry, weight.shape[2:])[1]
    rows, offsets = weight.flatten(1).norm(dim=1), torch.zeros(len(weight), dtype=torch.float64)
    parts = [(rows, offsets if bias is None else bias.abs())]
    parts += [] if stage.inner is None else [stage.inner]
    reached = [factor * size[:, None] * own + offset for own, offset in parts]
    most: Tensor = torch.cat(reached, dim=1).amax(dim=1)
    return most


def _absolute_conv_norm(kernel: Tensor, geometry: Geometry) -> float:
    """Norm bound of the convolution with the absolute kernel: its row and column sums (Schur)."""
    _, factor = copies(geometry, kernel.shape[2:])
    absolute = kernel.abs()
    rows = absolute.flatten(1).sum(dim=1).max()
    columns = absolute.sum(dim=(0, 2, 3)).max()  # over all groups: an overestimate
    return factor * math.sqrt(float(rows * columns)) * (1 + 4 * kernel.numel() * EPSILON)
