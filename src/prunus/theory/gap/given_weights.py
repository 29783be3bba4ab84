"""Trained weights known, masks still to be drawn: bounds of a network's gap, and simulation."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from prunus.check import as_float64, fraction, positive, whole
from prunus.theory.gap.concentration import NormBound
from prunus.theory.gap.convolution import conv_norm
from prunus.theory.gap.drawn_layers import drawn_conv_norm, drawn_norm, replacement_norm
from prunus.theory.gap.norms import spectral_norm
from prunus.theory.gap.stages import (
    Branches,
    LinearPair,
    Lipschitz,
    Pointwise,
    Stage,
    check_stages,
    run,
)
from prunus.theory.gap.statement import Statement, judge, warn_vacuous

__all__ = [
    "drawn_conv_norm",
    "drawn_mean_square",
    "drawn_norm",
    "drawn_sup",
    "draws_needed",
    "replacement_norm",
    "simulated_bound",
]


def drawn_sup(
    stages: Sequence[Stage],
    densities: Mapping[str, Any],
    *,
    radius: float,
    centre: Any = None,
    delta: float = 0.05,
    rescaled: bool = True,
    fixed_size: bool = False,
    layer_bound: Callable[[LinearPair, float], NormBound] | None = None,
) -> Statement:
    """With probability ≥ 1 − δ over the masks, sup of the gap over a ball ≤ value.

    The product route with Δ_i of `drawn_norm` at δ / l, v_i = w_i + Δ_i, and the centre's
    ‖D c‖ ≤ Δ_i ‖c‖. Layers not named in `densities` stay whole. Chains of matrices,
    convolutions, activations and pooling.

    Args:
        stages: the network; pruned weights in it are ignored.
        densities: p of each pruned layer by name, a number or a matrix.
        radius: of the ball.
        centre: of the ball, one input without batch axis; zero if None, which needs a network
            that starts with a matrix.
        delta: failure probability over the masks.
        rescaled: V = W ∘ M / p.
        fixed_size: masks keep exactly round(p N) entries instead of a Bernoulli number.
        layer_bound: another threshold of a layer's ‖W − V‖ at a share of δ, in place of
            `drawn_norm` and `drawn_conv_norm`.
    """
    whole_network = check_stages(stages)
    pairs = [stage for stage in whole_network if isinstance(stage, LinearPair)]
    pruned = [pair for pair in pairs if pair.name in densities]
    missing = set(densities) - {pair.name for pair in pairs}
    if missing:
        raise ValueError(f"`densities` names {sorted(missing)}, which are no layers here.")
    share = fraction("delta", delta) / max(len(pruned), 1)
    reach = positive("radius", radius)
    if centre is not None:
        at = as_float64("centre", centre)[None]
    elif pairs and pairs[0].geometry is None:
        at = torch.zeros(1, pairs[0].weight.shape[1], dtype=torch.float64)
    else:
        raise ValueError("the shape of an input is unknown: pass `centre`, one input.")
    gap, spread, spread_p = 0.0, reach, reach
    ledger = []
    for stage in whole_network:
        if isinstance(stage, Branches):
            raise ValueError(
                f"{stage.name!r}: bounds before the mask is drawn cover chains of matrices and "
                f"convolutions. Use simulated_bound for any other network."
            )
        if isinstance(stage, LinearPair):
            shape = stage.geometry
            dense = (
                spectral_norm(stage.weight) if shape is None else conv_norm(stage.weight, shape)
            ).value
            delta_norm = 0.0
            if stage.name in densities:
                p = densities[stage.name]
                kept = round(float(p) * stage.weight.numel()) if fixed_size else None
                if layer_bound is not None:
                    found = layer_bound(stage, share)
                elif shape is None:
                    found = drawn_norm(stage.weight, p, share, rescaled=rescaled, kept=kept)
                else:
                    found = drawn_conv_norm(
                        stage.weight, p, share, shape, rescaled=rescaled, kept=kept
                    )
                delta_norm = found.value
                ledger.append((f"‖W − V‖ of {stage.name} ({found.route})", share))
            gap = (dense + delta_norm) * gap + delta_norm * (spread + float(at.norm()))
            spread, spread_p = dense * spread, (dense + delta_norm) * spread_p
        elif isinstance(stage, Pointwise):
            lip = stage.activation.lipschitz
            gap, spread, spread_p = lip * gap, lip * spread, lip * spread_p
        else:
            assert isinstance(stage, Lipschitz)
            gain = stage.gain
            gap, spread, spread_p = gain * gap, gain * spread, gain * spread_p
        at = run([stage], at)
    trivial = None if bool(at.any()) else spread + spread_p
    vacuous, reason = judge(gap, trivial, None)
    statement = Statement(
        kind="sup",
        status="RIG",
        level="L2",
        value=gap,
        route="product route, masks not drawn",
        delta=delta,
        ledger=tuple(ledger),
        trivial=trivial,
        vacuous=vacuous,
        reason=reason,
        assumptions=("masks of different layers and entries are independent",),
    )
    warn_vacuous([statement])
    return statement


def drawn_mean_square(
    stages: Sequence[Stage],
    densities: Mapping[str, Any],
    samples: Float[Tensor, "samples in"],
    *,
    fixed_size: bool = False,
) -> Statement:
    """√(E over masks, mean over samples, of ‖F − f‖²) ≤ value, for rescaled random masks.

    ε_i² = L_i² (‖W_i‖² ε_{i−1}² + (√Σ V_ab g_b + √max_b Σ_a V_ab · ε_{i−1})²) with
    V_ab = W_ab² (1 − p_ab) / p_ab and g_b = mean h_{i−1,b}²; the new mask is independent of the
    error below it. Entries of a mask with exactly k of N kept repel each other, by −p (1 − p) /
    (N − 1): sums of terms that cancel vary N / (N − 1) times as much, and V has that factor.

    Args:
        stages: the network; pruned weights in it are ignored.
        densities: p of each pruned layer by name, a number or a matrix; of exact sizes a number.
        samples: inputs, batch first.
        fixed_size: masks keep exactly round(p N) entries instead of a Bernoulli number.
    """
    x = as_float64("samples", samples, dims=2)
    error = 0.0
    for stage in check_stages(stages):
        if isinstance(stage, LinearPair) and stage.geometry is None:
            norm = spectral_norm(stage.weight).value
            p = torch.as_tensor(densities.get(stage.name, 1.0), dtype=torch.float64)
            if bool((p <= 0).any()):
                raise ValueError(f"density of {stage.name!r} must be > 0 for rescaled masks.")
            variance = stage.weight.square() * (1 - p) / p
            if fixed_size and stage.weight.numel() > 1:
                variance = variance * (stage.weight.numel() / (stage.weight.numel() - 1))
            fresh = float((variance @ x.square().mean(dim=0)).sum().sqrt())
            fresh += float(variance.sum(dim=0).max().sqrt()) * error
            error = math.sqrt(norm**2 * error**2 + fresh**2)
        elif isinstance(stage, Pointwise):
            error *= stage.activation.lipschitz
        elif isinstance(stage, Lipschitz):
            error *= stage.gain
        else:
            raise ValueError(f"{stage.name!r}: the mean square theorem covers chains of matrices.")
        x = run([stage], x)
    scale = float(x.square().sum(dim=1).mean().sqrt())
    vacuous, reason = judge(error, None, scale)
    return Statement(
        kind="mean_square",
        status="RIG",
        level="L2",
        value=error,
        route="orthogonal recursion, masks not drawn",
        vacuous=vacuous,
        reason=reason,
        assumptions=("an expectation over masks, a mean over these samples",),
    )


def simulated_bound(
    draw: Callable[[Generator], float],
    draws: int,
    *,
    confidence_delta: float = 1e-3,
    generator: Generator,
) -> Statement:
    """Draw K masks, take the largest of any scalar: P(next > max) ≤ 1 − δ_mc^{1/K}.

    The tightest bound before the mask is drawn, for any law of masks. `draw` returns the scalar (a
    layer norm, a whole certificate) of one mask drawn with the generator it is given. The
    statement's δ is the sum of the simulation's δ_mc and the probability it bounds.
    """
    count = whole("draws", draws, low=1)
    risk = fraction("confidence_delta", confidence_delta)
    value = max(draw(generator) for _ in range(count))
    exceeds = 1 - risk ** (1 / count)
    vacuous, reason = judge(value, None, None)
    return Statement(
        kind="sup",
        status="RIG/MC",
        level="L2",
        value=value,
        route=f"largest of {count} simulated masks",
        delta=exceeds + risk,
        ledger=(("the next mask exceeds all drawn", exceeds), ("simulation unlucky", risk)),
        vacuous=vacuous,
        reason=reason,
        assumptions=("the mask is drawn from the simulated law, independently of the draws",),
    )


def draws_needed(confidence_delta: float, share: float) -> int:
    """K = ⌈ln δ_mc / ln(1 − δ_e)⌉ masks for an exceedance of at most δ_e."""
    return math.ceil(math.log(confidence_delta) / math.log1p(-share))
