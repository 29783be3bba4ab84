"""Lipschitz constants and gaps of plain chains by averaged activations."""

import functools
import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from prunus.theory.gap.activations import Activation
from prunus.theory.gap.norms import EPSILON, spectral_norm
from prunus.theory.gap.stages import LinearPair, Lipschitz, Pointwise, Stage, bias_shift

__all__ = ["chain_bound", "chain_lipschitz", "chain_norm", "plain_chain"]


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
        elif not (isinstance(stage, Lipschitz) and stage.moves):
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
