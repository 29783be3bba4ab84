"""Rough laws of what small weights learn: growth in one step, SNR, and when weights are small.

They explain the closed form of `predict` and are less exact; no prediction is made with them.
"""

import math
from dataclasses import dataclass
from typing import Literal

from prunus.theory.at_init.data import Setting, check_density
from prunus.theory.at_init.predict import TRAIN_LOSS, final_margin

__all__ = [
    "OneStepGrowth",
    "critical_init_scale",
    "initialisation_regime",
    "one_step_growth",
    "template_snr",
]


def template_snr(setting: Setting, density: float, active: float = 0.7) -> float:
    """Small-weights SNR of one pairwise comparison at mean counts [HEURISTIC].

    SNR(p) = (ρ_0 − √(p/2π)) / √([p + (1−p)a/2]² + [p/2 + (1−p)a/2]² + (1−p)(1.34 + 0.68 a/p)/m).
    The squares fall with p (gating), the last term rises; fluctuations of S_k are left out.

    Args:
        setting: sizes and strengths.
        density: p.
        active: a, share of own-class points on which a noise-only neuron is active.
    """
    p, a, m = check_density("density", density), active, setting.neurons
    coherent = (p + (1 - p) * a / 2) ** 2 + (p / 2 + (1 - p) * a / 2) ** 2
    finite_width = (1 - p) * (1.34 + 0.68 * a / p) / m
    lead = setting.signal_to_noise - math.sqrt(p / (2 * math.pi))
    return lead / math.sqrt(coherent + finite_width)


def critical_init_scale(
    setting: Setting, density: float, *, train_loss: float = TRAIN_LOSS
) -> float:
    """σ_0 at which the initial function and the learned signal have equal weight [HEURISTIC].

    σ_crit = Δ n_k μ² / (own · σ_n √(p d)), own = S (n_k μ² + p d σ_n²) + 0.7 (m−S) p d σ_n²,
    S = p m and Δ the final margin.
    """
    p = check_density("density", density)
    strength = setting.per_class * setting.signal**2
    power = p * setting.dimension * setting.noise**2
    kept = p * setting.neurons
    own = kept * (strength + power) + 0.7 * (setting.neurons - kept) * power
    margin = final_margin(setting.classes, train_loss)
    return margin * strength / (own * math.sqrt(power))


def initialisation_regime(
    setting: Setting, density: float, *, train_loss: float = TRAIN_LOSS
) -> Literal["small", "intermediate", "lazy"]:
    """ "small" if σ_0 ≤ σ_crit/2, "lazy" if σ_0 ≥ 3 σ_crit, else "intermediate" [HEURISTIC]."""
    critical = critical_init_scale(setting, density, train_loss=train_loss)
    if setting.init_scale <= critical / 2:
        return "small"
    return "lazy" if setting.init_scale >= 3 * critical else "intermediate"


@dataclass(frozen=True)
class OneStepGrowth:
    """Growth of a neuron's coefficients in one step from small weights.

    Attributes:
        signal_own: of μ w[k] of a signal neuron; does not depend on the density.
        signal_other: of μ w[j], another class's coordinate that the mask keeps.
        noise_own: of ⟨w, ξ_i⟩ on an active point of the own class; proportional to the density.
        noise_other: of ⟨w, ξ_i⟩ on an active point of another class.
    """

    signal_own: float
    signal_other: float
    noise_own: float
    noise_other: float


def one_step_growth(setting: Setting, density: float, step_size: float = 1.0) -> OneStepGrowth:
    """First step of gradient descent, exact in expectation up to O(K/d) and imbalance [HEURISTIC].

    A surviving neuron's signal grows by η μ² (1/K)(1−1/K)/2 whatever the density, its noise
    by η (1−1/K) p D σ_n²/n: pruning weakens the noise alone.
    """
    p, k = check_density("density", density), setting.classes
    power = p * setting.noise_dimension * setting.noise**2 / setting.samples
    return OneStepGrowth(
        signal_own=step_size * setting.signal**2 * (1 - 1 / k) / (2 * k),
        signal_other=-step_size * setting.signal**2 / (2 * k**2),
        noise_own=step_size * (1 - 1 / k) * power,
        noise_other=-step_size * power / k,
    )
