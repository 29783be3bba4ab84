"""How an error travels through a network whose weights and masks are known."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from prunus.theory.gap.activations import Activation
from prunus.theory.gap.norms import EPSILON, Geometry, conv_norm, spectral_norm

__all__ = [
    "Branches",
    "LayerNorms",
    "LinearPair",
    "Lipschitz",
    "Pointwise",
    "Reach",
    "Stage",
    "chain_bound",
    "chain_lipschitz",
    "chain_norm",
    "layer_norms",
    "linear_stages",
    "padded",
    "plain_chain",
    "product_bound",
    "rounding_error",
    "run",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearPair:
    """A linear map before and after pruning; a convolution where `geometry` is given.

    A convolution of sequences (batch, channels, length) is one of images of height 1: its kernel
    is (out, in / groups, 1, taps).

    Attributes:
        name: of the layer.
        weight: W, (out, in), or a kernel (out, in / groups, height, width).
        pruned_weight: V of the same shape.
        bias: b, (out,), or None.
        pruned_bias: c of the same shape, or None.
        geometry: how the kernel meets its images; None for a matrix.
        offsets: (out,), where a batch norm is folded in: the sum of the sizes of all that the
            modules add or subtract, scaled, in the larger of both networks. They may cancel in
            the folded bias, but their rounding does not.
    """

    name: str
    weight: Tensor
    pruned_weight: Tensor
    bias: Tensor | None = None
    pruned_bias: Tensor | None = None
    geometry: Geometry | None = None
    offsets: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    """An activation applied entry by entry."""

    name: str
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class Lipschitz:
    """A map alike in both networks, with a known Lipschitz constant and value 0 at 0."""

    name: str
    gain: float
    function: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Two branches of one value, joined; an empty one is the identity.

    Their sum, where Lipschitz constants and gaps add; or, along `axis`, the shortcut's output
    followed by the branch's, where they are the root of the sum of squares. More than two
    branches nest.

    Attributes:
        name: for messages.
        branch: the second branch.
        shortcut: the first branch.
        axis: along which the two are concatenated (not the batch's 0); None: they are added.
    """

    name: str
    branch: tuple["Stage", ...]
    shortcut: tuple["Stage", ...] = ()
    axis: int | None = None

    def size(self, first: float, second: float) -> float:
        """Norm of the joined value from the norms of the two."""
        return first + second if self.axis is None else math.hypot(first, second)

    def sizes(self, first: Tensor, second: Tensor) -> Tensor:
        """As `size`, for one norm per sample."""
        return first + second if self.axis is None else torch.hypot(first, second)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """The joined value."""
        return first + second if self.axis is None else torch.cat([first, second], dim=self.axis)


Stage = LinearPair | Pointwise | Lipschitz | Branches


@dataclass(frozen=True, kw_only=True)
class LayerNorms:
    """Upper bounds w ≥ ‖W‖, v ≥ ‖V‖, Δ ≥ ‖W − V‖ of one layer."""

    dense: float
    pruned: float
    difference: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Reach:
    """What is known of the hidden vectors after a stage, over the whole ball of inputs.

    Attributes:
        dense: bound on the distance of h from its value at the centre.
        pruned: the same for the pruned network.
        gap: bound on ‖h − ĥ‖.
        centre: h at the centre of the ball.
        pruned_centre: ĥ at the centre.
    """

    dense: float
    pruned: float
    gap: float
    centre: Tensor
    pruned_centre: Tensor

    @property
    def trivial(self) -> float:
        """The bound on ‖h − ĥ‖ that knows nothing of the difference of the weights."""
        return self.dense + self.pruned + float((self.centre - self.pruned_centre).norm())


def apply_linear(stage: LinearPair, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """The linear map of a stage on a batch, with the weights given."""
    if stage.geometry is None:
        return F.linear(x, weight, bias)
    shape = stage.geometry
    sequence = x.ndim == 3
    x = padded(shape, x)
    x = F.conv2d(x, weight, bias, shape.stride, 0, shape.dilation, shape.groups)
    return x.squeeze(2) if sequence else x


def padded(shape: Geometry, x: Tensor) -> Float[Tensor, "batch channels height width"]:
    """Images with their border, ready for a kernel; a sequence becomes an image of height 1."""
    x = x[:, :, None] if x.ndim == 3 else x
    (top, bottom), (left, right) = shape.padding
    if not any((top, bottom, left, right)):
        return x
    mode = "circular" if shape.circular else "constant"
    return F.pad(x, (left, right, top, bottom), mode=mode)


def run(stages: Sequence[Stage], x: Tensor, *, pruned: bool = False) -> Tensor:
    """The network's (or the pruned network's) output on a batch."""
    for stage in stages:
        if isinstance(stage, LinearPair):
            weight = stage.pruned_weight if pruned else stage.weight
            x = apply_linear(stage, weight, stage.pruned_bias if pruned else stage.bias, x)
        elif isinstance(stage, Pointwise):
            x = stage.activation.function(x)
        elif isinstance(stage, Lipschitz):
            x = stage.function(x)
        else:
            first, second = stage.shortcut, stage.branch
            x = stage.join(run(first, x, pruned=pruned), run(second, x, pruned=pruned))
    return x


def linear_stages(stages: Sequence[Stage]) -> list[LinearPair]:
    """All linear maps, those inside residual branches included, in order."""
    found: list[LinearPair] = []
    for stage in stages:
        if isinstance(stage, LinearPair):
            found.append(stage)
        elif isinstance(stage, Branches):
            found += linear_stages(stage.shortcut) + linear_stages(stage.branch)
    return found


def layer_norms(stage: LinearPair) -> LayerNorms:
    """Safe norms of one layer: diagonalised Gram matrices, or frequencies of a convolution."""

    def norm(weight: Tensor) -> float:
        if stage.geometry is None:
            return spectral_norm(weight).value
        return conv_norm(weight, stage.geometry).value

    return LayerNorms(
        dense=norm(stage.weight),
        pruned=norm(stage.pruned_weight),
        difference=norm(stage.weight - stage.pruned_weight),
    )


def bias_shift(stage: LinearPair) -> Tensor | None:
    """b − c, a missing one counted as 0; None where both are missing."""
    if stage.bias is None and stage.pruned_bias is None:
        return None
    zero = torch.zeros(len(stage.weight), dtype=stage.weight.dtype)
    dense = zero if stage.bias is None else stage.bias
    return dense - (zero if stage.pruned_bias is None else stage.pruned_bias)


def product_bound(
    stages: Sequence[Stage],
    reach: Reach,
    norms: Callable[[LinearPair], LayerNorms] = layer_norms,
) -> Reach:
    """Carry `reach` through the stages by norms alone (the product route).

    z − ẑ = V(h − ĥ) + D h = W(h − ĥ) + D ĥ, so with radii R, R̂ around the centre values c, ĉ the
    gap is at most min(v e + Δ R + ‖D c + δb‖, w e + Δ R̂ + ‖D ĉ + δb‖); activations multiply by
    their Lipschitz constant, bounded ones cap; a sum of branches sums, a concatenation takes the
    root of the sum of squares. Never above the trivial R + R̂ + ‖c − ĉ‖.

    References:
        docs/gap.md, propagation.
    """
    for stage in stages:
        if isinstance(stage, LinearPair):
            reach = _through_linear(stage, reach, norms(stage))
        elif isinstance(stage, Pointwise):
            phi = stage.activation
            lip = phi.lipschitz
            cap = math.inf
            if math.isfinite(phi.width):
                cap = phi.width * math.sqrt(reach.centre.numel())
            reach = Reach(
                dense=min(lip * reach.dense, cap),
                pruned=min(lip * reach.pruned, cap),
                gap=min(lip * reach.gap, cap),
                centre=phi.function(reach.centre),
                pruned_centre=phi.function(reach.pruned_centre),
            )
        elif isinstance(stage, Lipschitz):
            reach = Reach(
                dense=stage.gain * reach.dense,
                pruned=stage.gain * reach.pruned,
                gap=stage.gain * reach.gap,
                centre=stage.function(reach.centre),
                pruned_centre=stage.function(reach.pruned_centre),
            )
        else:
            left = product_bound(stage.shortcut, reach, norms)
            right = product_bound(stage.branch, reach, norms)
            reach = Reach(
                dense=stage.size(left.dense, right.dense),
                pruned=stage.size(left.pruned, right.pruned),
                gap=stage.size(left.gap, right.gap),
                centre=stage.join(left.centre, right.centre),
                pruned_centre=stage.join(left.pruned_centre, right.pruned_centre),
            )
        reach = replace(reach, gap=min(reach.gap, reach.trivial))
    return reach


def _through_linear(stage: LinearPair, reach: Reach, norms: LayerNorms) -> Reach:
    difference, shift = stage.weight - stage.pruned_weight, bias_shift(stage)
    at_dense = float(apply_linear(stage, difference, shift, reach.centre).norm())
    at_pruned = float(apply_linear(stage, difference, shift, reach.pruned_centre).norm())
    gap = min(
        norms.pruned * reach.gap + norms.difference * reach.dense + at_dense,
        norms.dense * reach.gap + norms.difference * reach.pruned + at_pruned,
    )
    return Reach(
        dense=norms.dense * reach.dense,
        pruned=norms.pruned * reach.pruned,
        gap=gap,
        centre=apply_linear(stage, stage.weight, stage.bias, reach.centre),
        pruned_centre=apply_linear(
            stage, stage.pruned_weight, stage.pruned_bias, reach.pruned_centre
        ),
    )


def _segment_norm(matrices: Sequence[Tensor]) -> float:
    """Safe norm of the product M_t ⋯ M_s of matrices given first to last, outward."""
    product = matrices[0]
    slack = float(product.norm())
    for matrix in matrices[1:]:
        product = matrix @ product
        slack *= float(matrix.norm())
    value = float(product.norm()) if product.shape[1] == 1 else spectral_norm(product).value
    if len(matrices) > 1:  # rounding of the matrix products themselves
        value += slack * EPSILON * sum(matrix.shape[1] for matrix in matrices)
    return value


def chain_norm(
    matrices: Sequence[Tensor],
    activations: Sequence[Activation],
    segment: Callable[[int, int], float] | None = None,
) -> float:
    """Lipschitz constant of M_k A_{k−1} M_{k−1} ⋯ A_1 M_1, activations between the matrices.

    θ_0 = 1, θ_t = Σ_{s<t} θ_s ρ_s (∏_{s<j<t} m_j) ‖M_t ⋯ M_{s+1}‖ with m, r the middle and half
    width of the slopes, ρ_0 = 1, ρ_s = r_s; and never above the product of norms.

    Args:
        matrices: M_1 first.
        activations: one fewer than matrices.
        segment: ‖M_t ⋯ M_{s+1}‖ as a function of (s, t), to share norms between chains.

    References:
        Combettes & Pesquet (2020), SIAM J. Math. Data Sci. 2, for slopes in [0, 1]; slope
        intervals derived in docs/gap.md.
    """
    if segment is None:

        def segment(s: int, t: int) -> float:
            return _segment_norm(matrices[s:t])

    middles = [abs(a.high + a.low) / 2 for a in activations]
    halves = [1.0, *((a.high - a.low) / 2 for a in activations)]
    theta, product = [1.0], 1.0
    for t in range(1, len(matrices) + 1):
        total = 0.0
        for s in range(t):
            weight = theta[s] * halves[s] * math.prod(middles[s : t - 1])
            if weight > 0:
                total += weight * segment(s, t)
        product *= segment(t - 1, t) * (activations[t - 2].lipschitz if t > 1 else 1.0)
        theta.append(min(total, product))
    return theta[-1]


def plain_chain(
    stages: Sequence[Stage], centre: Tensor
) -> tuple[list[LinearPair], list[Activation], Tensor] | None:
    """Matrices, the activations after them, and the centre as a vector; None for other networks.

    Needs matrices and activations in turn (maps of gain 1 between them change nothing), at most
    8 layers or all sides at most 2000.
    """
    pairs: list[LinearPair] = []
    activations: list[Activation] = []
    pending = False
    for stage in stages:
        if isinstance(stage, LinearPair) and stage.geometry is None and not pending:
            pairs.append(stage)
            pending = True
        elif isinstance(stage, Pointwise) and pending:
            activations.append(stage.activation)
            pending = False
        elif not (isinstance(stage, Lipschitz) and stage.name == "identity"):
            return None
        elif not pairs:
            centre = stage.function(centre)  # flattening, before the first matrix
    largest = max((max(pair.weight.shape) for pair in pairs), default=0)
    if not pairs or (len(pairs) > 8 and largest > 2000):
        return None
    return pairs, activations, centre


def chain_lipschitz(stages: Sequence[Stage], centre: Tensor, *, pruned: bool) -> float | None:
    """Lipschitz constant of one of the two networks by averaged activations, or None."""
    found = plain_chain(stages, centre)
    if found is None:
        return None
    pairs, activations, _ = found
    outer = activations[len(pairs) - 1].lipschitz if len(activations) == len(pairs) else 1.0
    matrices = [pair.pruned_weight if pruned else pair.weight for pair in pairs]
    return outer * chain_norm(matrices, activations[: len(pairs) - 1])


def chain_bound(
    stages: Sequence[Stage], radius: float, centre: Float[Tensor, "1 ..."]
) -> float | None:
    """Bound on the gap over the ball by averaged activations; None where the rule does not apply.

    e ≤ Σ_i [B · CP(W_1..W_{i−1}, D_i, V_{i+1}..V_l) + CP(u_i, V_{i+1}..V_l)] with
    u_i = D_i c_{i−1} + b_i − b̂_i at the centre and CP of `chain_norm`. Where it applies:
    `plain_chain`.
    """
    found = plain_chain(stages, centre)
    if found is None:
        return None
    pairs, activations, centre = found
    outer = activations.pop().lipschitz if len(activations) == len(pairs) else 1.0
    count = len(pairs)
    dense = [pair.weight for pair in pairs]
    pruned = [pair.pruned_weight for pair in pairs]

    def segment(switch: int, start: int, stop: int) -> float:
        """Norm of matrices start+1..stop: W up to `switch`, D there, V after it."""
        if switch < start:
            switch = -1  # only V
        elif switch >= stop:
            switch = count  # only W
        return shared(start, stop, switch)

    @functools.cache
    def shared(start: int, stop: int, switch: int) -> float:
        return _segment_norm(
            [
                dense[i] if i < switch else pruned[i] if i > switch else dense[i] - pruned[i]
                for i in range(start, stop)
            ]
        )

    total, hidden = 0.0, centre
    for i, pair in enumerate(pairs):
        difference = pair.weight - pair.pruned_weight
        if bool((difference != 0).any()):
            total += radius * chain_norm(dense, activations, functools.partial(segment, i))
        shift = F.linear(hidden, difference, bias_shift(pair))
        if bool((shift != 0).any()):
            total += chain_norm([shift.T, *pruned[i + 1 :]], [*activations[i:]])
        hidden = F.linear(hidden, pair.weight, pair.bias)
        if i < len(activations):
            hidden = activations[i].function(hidden)
    return outer * total


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
