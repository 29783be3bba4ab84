"""Where pruning keeps the signal, loses it, and cannot but fail: probabilities and thresholds.

Everything here is proved (see docs/at_init.md), except `p_mild`, which has the shape of the
paper's mild regime but not its constant.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.check import fraction, positive, whole
from prunus.theory.at_init.data import check_density

__all__ = [
    "InformationBounds",
    "SignalLoss",
    "information_bounds",
    "mean_accuracy_bound",
    "over_pruned_probability",
    "p_keep",
    "p_mild",
    "p_over",
    "path_loss_probability",
    "retention",
    "signal_loss_probability",
    "visible_classes",
]


def p_keep(neurons: int, classes: int, delta: float = 0.01, support: int = 1) -> float:
    """Smallest density that keeps every class a signal weight with probability ≥ 1 − δ [PROVED].

    p = 1 − (1 − (1−δ)^(1/K))^(1/(m s)) ≈ log(K/δ)/(m s), exact for Bernoulli masks.

    Args:
        neurons: m, hidden units per class.
        classes: K.
        delta: δ in (0, 1).
        support: s, coordinates that carry a class's signal.
    """
    whole("neurons", neurons, low=1)
    whole("classes", classes, low=2)
    whole("support", support, low=1)
    fraction("delta", delta)
    lost = -math.expm1(math.log1p(-delta) / classes)  # P(one class loses its signal)
    return -math.expm1(math.log(lost) / (neurons * support))


def p_mild(neurons: int, dimension: int, constant: float = 1.0) -> float:
    """min(1, C log d / m): the paper's mild regime in order of magnitude only.

    The constant is the caller's; it is not one of a theorem's. By Chernoff, p ≥ (8/m) log(K/δ)
    leaves every class at least p m / 2 signal neurons with probability ≥ 1 − δ.
    """
    whole("neurons", neurons, low=1)
    whole("dimension", dimension, low=2)
    return min(1.0, positive("constant", constant) * math.log(dimension) / neurons)


def p_over(classes: int, neurons: int, dimension: int) -> float:
    """1/(K m log d), where P(any class keeps an own signal neuron) ≤ 1/log d [PROVED].

    There P(any class is visible at all) ≤ K/log d, so for K ≪ log d the network is a random
    guesser with probability ≥ 1 − K/log d; see `over_pruned_probability`.
    """
    whole("classes", classes, low=2)
    whole("neurons", neurons, low=1)
    whole("dimension", dimension, low=2)
    return 1 / (classes * neurons * math.log(dimension))


def over_pruned_probability(density: float, classes: int, neurons: int, support: int = 1) -> float:
    """Exact probability (1−p)^(K² m s) that no class is visible to any neuron [PROVED]."""
    p = check_density("density", density)
    whole("classes", classes, low=2)
    whole("neurons", neurons, low=1)
    whole("support", support, low=1)
    return _none_kept(p, classes**2 * neurons * support)


def _none_kept(density: float, count: float) -> float:
    """(1 − p)^count, accurate for tiny p."""
    return 0.0 if density >= 1 else math.exp(count * math.log1p(-density))


@dataclass(frozen=True)
class SignalLoss:
    """Probabilities that the own signal weights of classes are all masked.

    Attributes:
        per_class: P(S_k = 0) = (1−p)^(m s).
        any_class: P(some class has S_k = 0).
        expected_classes: mean number of classes with S_k = 0.
        all_kept: P(every class keeps one), 1 − any_class.
    """

    per_class: float
    any_class: float
    expected_classes: float
    all_kept: float


def signal_loss_probability(
    density: float, neurons: int, classes: int, support: int = 1
) -> SignalLoss:
    """Coupon-collector probabilities of losing classes' signals at initialisation [PROVED]."""
    p = check_density("density", density)
    whole("neurons", neurons, low=1)
    whole("classes", classes, low=2)
    whole("support", support, low=1)
    lost = _none_kept(p, neurons * support)
    log_all_kept = classes * math.log1p(-lost) if lost < 1 else -math.inf
    return SignalLoss(lost, -math.expm1(log_all_kept), classes * lost, math.exp(log_all_kept))


@dataclass(frozen=True)
class InformationBounds:
    """What no training algorithm can beat when only `visible` of K classes are visible.

    Attributes:
        visible: a, classes of which some neuron keeps a signal coordinate.
        accuracy: upper bound (a+1)/K on the test accuracy (1 when a = K).
        loss: lower bound ((K−a)/K) log(K−a) on the test cross-entropy.
    """

    visible: int
    accuracy: float
    loss: float


def information_bounds(visible: int, classes: int) -> InformationBounds:
    """Accuracy and loss bounds for a < K visible classes, for any training algorithm [PROVED].

    Invisible classes look alike after masking, so the posterior over them carries no information.
    """
    k = whole("classes", classes, low=2)
    a = whole("visible", visible, low=0, high=k)
    hidden = k - a
    return InformationBounds(
        visible=a,
        accuracy=min(1.0, (a + 1) / k),
        loss=hidden / k * math.log(hidden) if hidden else 0.0,
    )


def mean_accuracy_bound(density: float, classes: int, neurons: int, support: int = 1) -> float:
    """Upper bound on the test accuracy averaged over masks, for any training algorithm [PROVED].

    E[min(1, (a+1)/K)] = (K q + 1 − q^K)/K, where a class is visible with probability
    q = 1 − (1−p)^(K m s), independently of the others.
    """
    p, k = check_density("density", density), whole("classes", classes, low=2)
    whole("neurons", neurons, low=1)
    whole("support", support, low=1)
    seen = 1 - _none_kept(p, k * neurons * support)
    return (k * seen + 1 - seen**k) / k


def visible_classes(mask: Any, classes: int, support: int = 1) -> list[int]:
    """Classes j such that any neuron of the network keeps a coordinate of signal j.

    Args:
        mask: (K·m) × d array, nonzero where a weight is kept.
        classes: K; the first K·s columns are the signals, class after class.
        support: s.
    """
    k, s = whole("classes", classes, low=2), whole("support", support, low=1)
    kept = torch.as_tensor(mask) != 0
    if kept.ndim != 2 or kept.shape[1] < k * s:
        raise ValueError(
            f"`mask` must be a matrix with at least classes · support = {k * s} columns, got "
            f"shape {tuple(kept.shape)}."
        )
    seen = kept[:, : k * s].reshape(len(kept), k, s).any(2).any(0)
    return [int(j) for j in seen.nonzero()[:, 0]]


def binomial_law(trials: int, chances: Float[Tensor, " from"]) -> Float[Tensor, "from to"]:
    """Row i is Binomial(trials, chances[i]) on 0…trials, computed in log space."""
    count = torch.arange(trials + 1, dtype=torch.float64)
    choose = math.lgamma(trials + 1) - torch.lgamma(count + 1) - torch.lgamma(trials - count + 1)
    q = chances[:, None]
    log_pmf = choose + torch.xlogy(count, q) + torch.xlogy(trials - count, 1 - q)
    return log_pmf.exp()


def path_loss_probability(
    density: float, widths: Sequence[int], support: int = 1, *, pruned_layers: int | None = None
) -> float:
    """Probability that an output keeps no live path from any of s input coordinates [PROVED].

    Layers are pruned with independent Bernoulli(p) masks. Live units form a Markov chain:
    A_1 ~ Bin(m_1, 1−(1−p)^s), A_{l+1} ~ Bin(m_{l+1}, 1−(1−p)^{A_l}); lost = E (1−p)^{A_L}.

    Args:
        density: p.
        widths: hidden widths m_1 … m_L; empty widths are refused.
        support: s, coordinates that carry the signal.
        pruned_layers: the first so many of the L + 1 layers are pruned; None means all.
    """
    p = check_density("density", density)
    layers = check_widths(widths)
    s = whole("support", support, low=1)
    n_layers = len(layers) + 1
    pruned = n_layers if pruned_layers is None else pruned_layers
    whole("pruned_layers", pruned, low=1, high=n_layers)

    def lost(live: Tensor, layer: int) -> Tensor:
        """P(a unit of the layer sees none of the live units)."""
        if layer < pruned and p < 1:
            return (live * math.log1p(-p)).exp()
        return (live == 0).double()

    live = torch.tensor([float(s)], dtype=torch.float64)
    law = torch.ones(1, dtype=torch.float64)
    for layer, width in enumerate(layers):
        law = law @ binomial_law(width, 1 - lost(live, layer))
        live = torch.arange(width + 1, dtype=torch.float64)
    return float((law * lost(live, len(layers))).sum())


def check_widths(widths: Sequence[int]) -> list[int]:
    """Hidden widths ≥ 1, at least one of them."""
    layers = [whole("widths", width, low=1) for width in widths]
    if not layers:
        raise ValueError("`widths` must hold at least one hidden width >= 1, got none.")
    return layers


def retention(density: float, paths: float) -> float:
    """Share λ/(λ + 1 − p) of SNR² that a signal spread over many coordinates keeps [HEURISTIC].

    Args:
        density: p.
        paths: λ, mean number of live paths from a coordinate to an output: p·m for the two-layer
            model, (product of hidden widths) · p^(pruned layers) for a multilayer network.
    """
    p = check_density("density", density)
    lam = positive("paths", paths, zero=True)
    return lam / (lam + 1 - p) if lam > 0 else 0.0


def own_signal_neurons(
    kept_signal: Int[Tensor, "rows signals"] | Tensor, classes: int, support: int
) -> Int[Tensor, " classes"]:
    """S_k: neurons of class k that keep a coordinate of their own signal."""
    grouped = kept_signal.reshape(classes, -1, classes, support).any(3).sum(1)
    return grouped.diagonal()
