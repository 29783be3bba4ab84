"""Closed-form prediction of what a randomly pruned network learns [HEURISTIC].

Gradient descent from small weights drives every class's margin to the same value; that fixes the
multiplier λ of the training points, and with it the signal and noise coefficients of signal neurons
(those that keep their class's coordinate) and of noise-only neurons. On a fresh point a class's
output is then nearly Gaussian given one common factor, and the accuracy a short quadrature.
Measured accuracy: docs/at_init.md. No constant is fitted.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import whole
from prunus.theory.at_init.data import Setting, check_density
from prunus.theory.at_init.thresholds import binomial_law

__all__ = ["Prediction", "best_density", "generalisation_bound", "predict"]

TRAIN_LOSS = 5e-3
GRID = 400  # points of the competitors' distribution function
ITERATIONS = 25
POINTS_PER_CLASS = 6  # fewer leave signal neurons without an active point at first


@dataclass(frozen=True)
class Prediction:
    """What the closed form says of one density [HEURISTIC].

    Attributes:
        density: p.
        accuracy: test accuracy, mean over masks, or of the mask with the given counts.
        valid: False where the number is not to be relied on: where p d < 3 n and p m < 3
            (neurons that keep another class's signal matter there), and where p m < 10 with fewer
            than 6 points per class (signal neurons that no point of their class activates at
            first never learn, but are counted).
        signal: mean coefficient μ⟨w, e_k⟩ of a signal neuron (NaN if there is none).
        noise_signal_neurons: mean noise coefficient of a signal neuron on own-class points.
        noise_only_neurons: mean noise coefficient of a noise-only neuron on own-class points.
        active_signal: share of own-class points on which a signal neuron ends up active.
        active_noise_only: the same for a noise-only neuron; 3/4 from tiny weights, 1/2 when lazy.
    """

    density: float
    accuracy: float
    valid: bool
    signal: float
    noise_signal_neurons: float
    noise_only_neurons: float
    active_signal: float
    active_noise_only: float


@functools.cache
def _normal_nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss–Hermite nodes and weights of the standard normal; weights below 1e-9 are left out."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    kept = weights >= 1e-9
    return torch.from_numpy(nodes[kept]), torch.from_numpy(weights[kept])


@functools.cache
def _half_normal_nodes(count: int = 20) -> tuple[Tensor, Tensor]:
    """Nodes and weights of |N(0, 1)|, Gauss–Legendre in its distribution function."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.special.ndtri(torch.from_numpy(0.75 + 0.25 * nodes)), torch.from_numpy(weights / 2)


@functools.cache
def _margin_sample(classes: int) -> Tensor:
    """2000 fixed standard normal rows for the initial margins."""
    generator = torch.Generator().manual_seed(20230100335)
    return torch.randn(2000, classes, generator=generator, dtype=torch.float64)


def final_margin(classes: int, train_loss: float) -> float:
    """M = log((K−1)/(e^ε − 1)), the margin at which the cross-entropy is ε."""
    if not 0 < train_loss < math.log(classes):
        raise ValueError(
            f"`train_loss` must lie in (0, log classes) = (0, {math.log(classes):.4g}), got "
            f"{train_loss!r}."
        )
    return math.log((classes - 1) / math.expm1(train_loss))


def _margin_growth(setting: Setting, spread: float, train_loss: float) -> float:
    """Δ = E[log(e^M + e^{m0}) − m0], the growth needed from the random initial margin m0."""
    margin = final_margin(setting.classes, train_loss)
    if spread == 0:
        return margin
    scale = spread * math.sqrt(setting.neurons * (0.5 - 0.5 / math.pi))
    g = _margin_sample(setting.classes) * scale
    start = g[:, 0] - (g[:, 1:].logsumexp(1) - math.log(setting.classes - 1))
    end = torch.tensor(margin, dtype=torch.float64)
    return float((torch.logaddexp(end, start) - start).mean())


@dataclass(frozen=True, eq=False)
class _Learned:
    """The fixed point for each number s of signal neurons (one entry per s)."""

    count: Float[Tensor, " counts"]
    multiplier: Float[Tensor, " counts"]  # λ
    active_noise: Float[Tensor, " counts"]  # a_n
    active_signal: Float[Tensor, " counts"]  # a_s
    other: Float[Tensor, ""]  # growth of the other classes' outputs per λ
    first_output: float  # F0
    noise_power: float  # q = p D σ²


def _learn(
    setting: Setting, density: float, train_loss: float, count: Float[Tensor, " counts"]
) -> _Learned:
    """Damped iteration for λ and the active shares, all numbers of signal neurons at once."""
    n_k, m, sigma = setting.per_class, setting.neurons, setting.noise
    strength = n_k * setting.signal**2
    size = density * setting.noise_dimension
    q = size * sigma**2
    spread = setting.init_scale * sigma * math.sqrt(size)  # of initial pre-activations
    first = m * spread / math.sqrt(2 * math.pi)
    growth = _margin_growth(setting, spread, train_loss)
    half, weight = _half_normal_nodes()
    a_n = torch.full_like(count, 0.6)
    a_s = torch.ones_like(count)
    other = torch.tensor(
        (m * q / 2 + m * density * strength / 4) / (setting.classes - 1), dtype=torch.float64
    )

    def multiplier() -> Tensor:
        own = count * a_s * (strength * a_s + q) + (m - count) * a_n * q
        free = growth / (own + other)  # the other outputs fall by λ · other
        floor = max(growth - first, 0) / own  # unless they reach 0 first
        return torch.where(free * other < first, free, floor)

    for _ in range(ITERATIONS):
        lam = multiplier()
        x_n = sigma**2 * (size * n_k * a_n).sqrt() * lam
        x_s = sigma**2 * math.sqrt(size * n_k) * lam
        lead = (strength * a_s * lam)[:, None] - half * spread
        # x_s = 0 only where nothing is learned; the limit of Φ is then a step
        phi = torch.special.ndtr(lead / x_s[:, None].clamp_min(1e-300))
        a_n = (a_n + 0.5 + torch.atan2(x_n, torch.full_like(x_n, spread)) / (2 * math.pi)) / 2
        a_s = (a_s + 0.5 + 0.5 * (phi @ weight)) / 2
    return _Learned(count, multiplier(), a_n, a_s, other, first, q)


def _relu_moments(
    mean: Float[Tensor, "counts nodes"], std: Float[Tensor, "counts #nodes"]
) -> tuple[Tensor, Tensor]:
    """Mean and variance of relu(N(mean, std²)); std may be 0."""
    safe = std.clamp_min(1e-150)
    ratio = mean / safe
    cdf = torch.special.ndtr(ratio)
    pdf = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    first = mean * cdf + safe * pdf
    second = (mean.square() + safe.square()) * cdf + mean * safe * pdf
    return first, (second - first.square()).clamp_min(0)


@dataclass(frozen=True, eq=False)
class _Outputs:
    """Mean and variance of a class's output given the common factor, per count and node."""

    own_mean: Float[Tensor, "counts nodes"]
    own_variance: Float[Tensor, "counts nodes"]
    other_mean: Float[Tensor, "counts nodes"]
    other_variance: Float[Tensor, "counts nodes"]


def _outputs(setting: Setting, density: float, learned: _Learned) -> _Outputs:
    """Law of the outputs on a fresh point, for its own class and for a competitor."""
    k, n_k, m, sigma = setting.classes, setting.per_class, setting.neurons, setting.noise
    lam, a_n, a_s, s = (
        learned.multiplier,
        learned.active_noise,
        learned.active_signal,
        learned.count,
    )
    push = lam * learned.other
    beta = torch.where(push > 0, learned.first_output / push, torch.ones_like(push)).clamp_max(1)
    foreign = beta * (setting.samples - n_k) / (2 * (k - 1) ** 2 * n_k)  # e_o
    negative = beta * n_k * setting.signal**2 * lam / (2 * (k - 1))  # c_neg
    memory = sigma**2 * learned.noise_power * lam.square() * n_k  # A
    initial = learned.noise_power * setting.init_scale**2  # I
    z, _ = _normal_nodes(31)

    def factor(active: Tensor) -> tuple[Tensor, Tensor]:
        """Loading on the common factor and the spread left, both per count."""
        variance = memory * (active + foreign) + initial
        common = density * memory * (active.square() + foreign / 2)
        shared = torch.minimum(common, variance)
        return shared.sqrt()[:, None], (variance - shared).clamp_min(0).sqrt()[:, None]

    load_s, left_s = factor(a_s)
    load_n, left_n = factor(a_n)
    own_noise = sigma * lam * n_k * setting.signal * a_s  # noise on the signal coordinate
    if not setting.noise_on_signal:
        own_noise = torch.zeros_like(own_noise)
    spread_s = (memory * (a_s + foreign) + initial + own_noise.square()).clamp_min(1e-300).sqrt()
    mean_n, variance_n = _relu_moments(load_n * z, left_n)
    rest = m - s[:, None]

    def moments(mean: Tensor) -> tuple[Tensor, Tensor]:
        mean_s, variance_s = _relu_moments(mean[:, None] + load_s * z, left_s)
        gate = s * torch.special.ndtr(mean / spread_s) * own_noise
        total = s[:, None] * mean_s + rest * mean_n
        return total, s[:, None] * variance_s + rest * variance_n + gate.square()[:, None]

    own_mean, own_variance = moments(n_k * setting.signal**2 * a_s * lam)
    other_mean, other_variance = moments(torch.zeros_like(s))
    lowered = other_mean - (m * density * negative / 2)[:, None]
    return _Outputs(own_mean, own_variance, lowered, other_variance)


def _counts_law(setting: Setting, density: float) -> tuple[Tensor, Tensor]:
    """Numbers of signal neurons and their binomial weights, those below 1e-6 of the top dropped."""
    chance = torch.tensor([density], dtype=torch.float64)
    weight = binomial_law(setting.neurons, chance)[0]
    kept = weight >= 1e-6 * weight.max()
    count = torch.arange(setting.neurons + 1, dtype=torch.float64)[kept]
    return count, weight[kept] / weight[kept].sum()


def _check_setting(setting: Setting) -> None:
    if setting.support != 1:
        raise ValueError(
            f"The closed form covers `support` = 1, got {setting.support}. Use `simulate`, and "
            f"`retention` for signals on many coordinates."
        )


def _distribution(
    outputs: _Outputs, grid: Float[Tensor, " grid"], weight: Float[Tensor, "rows counts"]
) -> Float[Tensor, "rows grid"]:
    """Distribution function of a competitor's output, mixed over counts by each row of weights."""
    _, z_weight = _normal_nodes(31)
    scale = (2 * outputs.other_variance).sqrt().clamp_min(1e-150)[..., None]
    steps = grid - outputs.other_mean[..., None]
    steps.div_(scale).erf_()  # Φ = (1 + erf)/2: twice as fast as ndtr, tails to 1e-16
    mixed = (weight[:, :, None] * z_weight).flatten(1) @ steps.flatten(0, 1)
    return (0.5 + 0.5 * mixed).clamp(0, 1)


def _interpolate(
    x: Float[Tensor, " points"], grid: Float[Tensor, " grid"], values: Float[Tensor, " grid"]
) -> Float[Tensor, " points"]:
    return torch.from_numpy(np.interp(x.numpy(), grid.numpy(), values.numpy()))


def predict(
    setting: Setting,
    density: float,
    *,
    train_loss: float = TRAIN_LOSS,
    counts: Sequence[int] | None = None,
) -> Prediction:
    """Test accuracy and coefficients of a network pruned at random and trained [HEURISTIC].

    accuracy = Σ_s Bin(s; m, p) E_z E_e H(f_own + √V_own e)^(K−1), with f and V the mean and
    variance of a class's output given its common factor z, and H the competitors' distribution.

    Args:
        setting: sizes and strengths; its support must be 1.
        density: p.
        train_loss: ε at which training stops, in (0, log K).
        counts: S_1 … S_K of an actual mask; None averages over Bernoulli masks.

    Returns:
        prediction; optimistic by 0.01 … 0.03, and too low an error by 2 to 4 below 1 %.

    Raises:
        ValueError: a bad density, train loss, counts, or a support above 1.
    """
    p = check_density("density", density)
    _check_setting(setting)
    k, m = setting.classes, setting.neurons
    if counts is None:
        count, weight = _counts_law(setting, p)
        own = weight
    else:
        given = [whole("counts", c, low=0, high=m) for c in counts]
        if len(given) != k:
            raise ValueError(f"`counts` must hold one number per class ({k}), got {len(given)}.")
        values, place = torch.unique(torch.tensor(given), return_inverse=True)
        count = values.double()
        own = torch.bincount(place, minlength=len(values)).double() / k
    learned = _learn(setting, p, train_loss, count)
    outputs = _outputs(setting, p, learned)
    _, z_weight = _normal_nodes(31)
    e, e_weight = _normal_nodes(7)
    point = outputs.own_mean[..., None] + outputs.own_variance.sqrt()[..., None] * e
    grid = torch.linspace(
        float(point.min()), float(point.max()) + 1e-300, GRID, dtype=torch.float64
    )
    if counts is None:
        cdf = _distribution(outputs, grid, weight[None])[0]
        win = _interpolate(point.flatten(), grid, cdf).reshape(point.shape) ** (k - 1)
    else:
        each = _distribution(outputs, grid, torch.eye(len(count), dtype=torch.float64))
        all_classes = each[place].clamp_min(1e-300).log()
        win = torch.empty_like(point)
        for i in range(len(count)):
            rivals = all_classes.sum(0) - each[i].clamp_min(1e-300).log()
            win[i] = _interpolate(point[i].flatten(), grid, rivals.exp()).reshape(point[i].shape)
    accuracy = torch.einsum("cze,c,z,e->", win, own, z_weight, e_weight)
    signal_share = own * count
    rest_share = own * (m - count)

    def mean(values: Tensor, share: Tensor) -> float:
        return float((values * share).sum() / share.sum()) if float(share.sum()) > 0 else math.nan

    lam, a_s, a_n = learned.multiplier, learned.active_signal, learned.active_noise
    return Prediction(
        density=p,
        accuracy=float(accuracy),
        valid=_valid(setting, p),
        signal=mean(setting.per_class * setting.signal**2 * a_s * lam, signal_share),
        noise_signal_neurons=mean(learned.noise_power * lam * a_s, signal_share),
        noise_only_neurons=mean(learned.noise_power * lam * a_n, rest_share),
        active_signal=mean(a_s, signal_share),
        active_noise_only=mean(a_n, rest_share),
    )


def _valid(setting: Setting, density: float) -> bool:
    """Whether the closed form was measured to hold; see `Prediction.valid`."""
    kept = density * setting.neurons
    own_signal_rules = density * setting.dimension >= 3 * setting.samples or kept >= 3
    return own_signal_rules and (setting.per_class >= POINTS_PER_CLASS or kept >= 10)


def generalisation_bound(
    setting: Setting, density: float, *, train_loss: float = TRAIN_LOSS
) -> float:
    """A-priori error curve B(p), U-shaped; behaves as an upper bound from p_keep on [HEURISTIC].

    B(p) = Σ_s Bin(s) min(1 − 1/K, (K−1) Σ_s' Bin(s') exp(−D²/(2V))), with D the positive part of
    the difference of the class outputs' means and V the sum of their variances. It is not proved.

    Args:
        setting: sizes and strengths; its support must be 1.
        density: p.
        train_loss: ε at which training stops.
    """
    p = check_density("density", density)
    _check_setting(setting)
    count, weight = _counts_law(setting, p)
    outputs = _outputs(setting, p, _learn(setting, p, train_loss, count))
    _, z_weight = _normal_nodes(31)

    def moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        average = mean @ z_weight
        return average, variance @ z_weight + (mean - average[:, None]).square() @ z_weight

    own_mean, own_variance = moments(outputs.own_mean, outputs.own_variance)
    other_mean, other_variance = moments(outputs.other_mean, outputs.other_variance)
    gap = (own_mean[:, None] - other_mean).clamp_min(0)
    total = (own_variance[:, None] + other_variance).clamp_min(1e-300)
    union = (setting.classes - 1) * (torch.exp(-gap.square() / (2 * total)) @ weight)
    return float(weight @ union.clamp_max(1 - 1 / setting.classes))


def best_density(
    setting: Setting, *, lowest: float | None = None, train_loss: float = TRAIN_LOSS
) -> float:
    """Density p* of the highest predicted accuracy [HEURISTIC]; about c/√m with c = 1.45 … 1.9.

    Args:
        setting: sizes and strengths; its support must be 1.
        lowest: smallest density considered; None takes 1/(10 m).
        train_loss: ε at which training stops.
    """
    low = check_density("lowest", lowest if lowest is not None else 0.1 / setting.neurons)
    grid = torch.logspace(math.log10(low), 0, 25, dtype=torch.float64).tolist()

    def accuracy(p: float) -> float:
        return predict(setting, min(p, 1.0), train_loss=train_loss).accuracy

    best = max(range(len(grid)), key=lambda i: accuracy(grid[i]))
    left, right = math.log(grid[max(best - 1, 0)]), math.log(grid[min(best + 1, len(grid) - 1)])
    golden = (math.sqrt(5) - 1) / 2
    while right - left > 0.01:
        a, b = right - golden * (right - left), left + golden * (right - left)
        if accuracy(math.exp(a)) >= accuracy(math.exp(b)):
            right = b
        else:
            left = a
    return min(1.0, math.exp((left + right) / 2))
