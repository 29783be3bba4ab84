"""How far may a network be pruned at random before training? Two estimates from the data alone."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.check import as_float64, fraction, whole
from prunus.rng import generator_for
from prunus.theory.at_init.thresholds import check_widths, path_loss_probability

__all__ = [
    "SafeDensity",
    "coverage_limit",
    "effective_support",
    "hard_limit",
    "safe_density",
]

FACTOR = 2.1  # chosen on 20 settings, checked on 5 others (docs/at_init.md) [MEASURED]
SUBSAMPLE = 500
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
LOWEST_PATHS = 0.02  # mean number of live paths at the low end of the grid
POISSON_FROM = 10**6
NOTE = (
    "The rule concerns random masks and was checked on networks up to 400 wide on image data; "
    "masks by SNIP, GraSP or SynFlow stay accurate to densities 2 to 5 times smaller."
)


@dataclass(frozen=True, eq=False, kw_only=True)
class SafeDensity:
    """How far random pruning before training may go.

    Attributes:
        density: recommended min(1, 2.1 · max(hard_limit, coverage_limit)) [MEASURED rule].
        hard_limit: below it some class loses every path to its signal with probability > 0.1;
            a limit, not a recommendation: noisy data need far more.
        coverage_limit: density at which a ridge classifier on randomly covered inputs has lost
            `loss` of its margin over chance [HEURISTIC].
        paths: λ, mean number of live paths from an input to an output at `density`.
        support: participation number of each class's mean, in coordinates.
        densities: grid of the coverage curve, falling.
        accuracy: leave-one-out accuracy of the ridge classifier on the grid.
        note: what the rule does not cover.
    """

    density: float
    hard_limit: float
    coverage_limit: float
    paths: float
    support: Float[Tensor, " classes"]
    densities: Float[Tensor, " grid"]
    accuracy: Float[Tensor, " grid"]
    note: str = NOTE


def check_data(inputs: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Finite inputs, samples × features, and labels 0 … K−1, or an error."""
    x = as_float64("inputs", inputs)
    if x.ndim < 2:
        raise ValueError(
            f"`inputs` must have shape (samples, features), got {tuple(x.shape)}. Reshape it."
        )
    y = torch.as_tensor(labels)
    relabel = "Relabel with torch.unique(labels, return_inverse=True)[1]."
    if y.ndim != 1 or len(y) != len(x) or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(
            f"`labels` must be whole numbers 0 … K-1, one per sample ({len(x)}), got shape "
            f"{tuple(y.shape)} and {y.dtype}. {relabel}"
        )
    y = y.long()
    found = torch.unique(y).tolist()
    if len(found) < 2:
        raise ValueError(f"`labels` must hold at least 2 classes, got {len(found)}.")
    if found != list(range(len(found))):
        raise ValueError(f"`labels` must be the whole numbers 0 … K-1, got {found[:8]}. {relabel}")
    sizes = torch.bincount(y)
    if int(sizes.min()) < 2:
        raise ValueError(
            f"`labels` must hold at least 2 points of each class, got {int(sizes.min())} of class "
            f"{int(sizes.argmin())}."
        )
    return x.flatten(1), y


def effective_support(inputs: Any, labels: Any) -> Float[Tensor, " classes"]:
    """Participation number (Σ_l a_kl)² / Σ_l a_kl² of each class's mean, in coordinates.

    a_kl = max(0, (μ_kl − mean_k μ_kl)² − v_l/n_k) is the energy of the class mean, debiased by the
    pooled within-class variance v_l. A class whose energies are all 0 has support 1.

    Args:
        inputs: samples × features.
        labels: whole numbers 0 … K−1.
    """
    return _support(*check_data(inputs, labels))


def _support(x: Float[Tensor, "samples features"], y: Int[Tensor, " samples"]) -> Tensor:
    onehot = torch.nn.functional.one_hot(y).double()
    sizes = onehot.sum(0)
    means = (onehot.T @ x) / sizes[:, None]
    within = (x - means[y]).square().sum(0) / (len(x) - len(sizes))
    energy = ((means - means.mean(0)).square() - within / sizes[:, None]).clamp_min(0)
    return energy.sum(1).square() / energy.square().sum(1).clamp_min(1e-300)


def hard_limit(
    widths: Sequence[int],
    support: int,
    classes: int,
    *,
    pruned_layers: int | None = None,
    private: bool = False,
    delta: float = 0.1,
) -> float:
    """Smallest density with K · P(a class loses every path to its signal) ≤ δ [PROVED].

    Args:
        widths: hidden widths.
        support: s, coordinates that carry a class's signal.
        classes: K.
        pruned_layers: the first so many layers are pruned; None means all.
        private: one hidden layer whose units each serve one class, only the first layer pruned;
            then the probability is (1−p)^(m s).
        delta: δ in (0, 1).
    """
    layers = check_widths(widths)
    s, k = whole("support", support, low=1), whole("classes", classes, low=2)
    fraction("delta", delta)
    _check_private(layers, pruned_layers, private)

    def lost(p: float) -> float:
        if private:
            return math.exp(layers[0] * s * math.log1p(-p))
        return path_loss_probability(p, layers, s, pruned_layers=pruned_layers)

    low, high = math.log(1e-12), 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if k * lost(math.exp(middle)) <= delta:
            high = middle
        else:
            low = middle
    return math.exp(high)


def _check_private(layers: Sequence[int], pruned_layers: int | None, private: bool) -> None:
    if private and (len(layers) != 1 or pruned_layers not in (None, 1)):
        raise ValueError(
            f"`private` means one hidden layer with only the first layer pruned, got widths "
            f"{list(layers)} and pruned_layers={pruned_layers}."
        )


def coverage_limit(
    inputs: Any,
    labels: Any,
    paths: int,
    pruned_layers: int,
    *,
    densities: Any,
    draws: int = 4,
    loss: float = 0.1,
    generator: torch.Generator | None = None,
) -> tuple[float, Float[Tensor, " grid"]]:
    """Density at which randomly covered inputs cost `loss` of the margin over chance [HEURISTIC].

    Coordinate l reaches class k through c_l ~ Bin(paths, p^layers) live paths; a one-vs-rest ridge
    classifier with kernel X diag(c / mean c) Xᵀ + 0.1 t, t = mean |x_i|², is scored by its
    closed-form leave-one-out outputs (f_i − h_ii y_i)/(1 − h_ii). Its penalty is chosen once for
    the dense network. Nothing is trained.

    Args:
        inputs: samples × features; centred here.
        labels: whole numbers 0 … K−1.
        paths: paths from an input to an output of the dense network, the product of its widths.
        pruned_layers: layers that every path crosses with survival probability p each.
        densities: grid; 1 is always evaluated.
        draws: path counts drawn per density.
        loss: share of (dense accuracy − 1/K) that may be lost.
        generator: of the draws; None takes a fixed one.

    Returns:
        the limit, interpolated in log density, and the accuracy on the grid.
    """
    x, y = check_data(inputs, labels)
    return _coverage_limit(
        x,
        y,
        whole("paths", paths, low=1),
        whole("pruned_layers", pruned_layers, low=1),
        grid=sorted({1.0, *(float(p) for p in torch.as_tensor(densities).flatten())}, reverse=True),
        draws=whole("draws", draws, low=1),
        loss=fraction("loss", loss),
        generator=generator or generator_for(0, "at-init", "coverage"),
    )


def _leave_one_out(
    kernel: Float[Tensor, "samples samples"],
    target: Float[Tensor, "samples targets"],
    penalty: float,
) -> Float[Tensor, "samples targets"]:
    """Leave-one-out outputs of kernel ridge: y_i − (A⁻¹y)_i / (A⁻¹)_ii, A = K + penalty."""
    system = kernel + penalty * torch.eye(len(kernel), dtype=kernel.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    return target - (inverse @ target) / inverse.diagonal()[:, None]


def _coverage_limit(
    x: Float[Tensor, "samples features"],
    y: Int[Tensor, " samples"],
    paths: int,
    pruned_layers: int,
    *,
    grid: list[float],
    draws: int,
    loss: float,
    generator: torch.Generator,
) -> tuple[float, Float[Tensor, " grid"]]:
    x = x - x.mean(0)
    target = 2 * torch.nn.functional.one_hot(y).double() - 1
    k = target.shape[1]
    power = float(x.square().sum(1).mean())

    def accuracy(outputs: Tensor) -> float:
        return float((outputs.argmax(1) == y).double().mean())

    dense_kernel = x @ x.T + 0.1 * power
    scores = [accuracy(_leave_one_out(dense_kernel, target, a * power)) for a in PENALTIES]
    best = max(range(len(PENALTIES)), key=lambda i: scores[i])
    penalty, dense = PENALTIES[best] * power, scores[best]

    def covered(density: float) -> float:
        chance = density**pruned_layers
        total = 0.0
        for _ in range(draws):
            if paths > POISSON_FROM:
                rate = torch.full((k, x.shape[1]), paths * chance, dtype=torch.float64)
                counts = torch.poisson(rate, generator=generator)
            else:
                trials = torch.full((k, x.shape[1]), float(paths), dtype=torch.float64)
                counts = torch.binomial(
                    trials, torch.full_like(trials, chance), generator=generator
                )
            outputs = torch.empty_like(target)
            for j in range(k):
                weight = counts[j] / counts[j].mean().clamp_min(1e-300)
                kernel = (x * weight) @ x.T + 0.1 * power
                outputs[:, j] = _leave_one_out(kernel, target[:, j : j + 1], penalty)[:, 0]
            total += accuracy(outputs)
        return total / draws

    values = [dense if p == 1 else covered(p) for p in grid]
    threshold = dense - loss * (dense - 1 / k)
    curve = torch.tensor(values, dtype=torch.float64)
    for i in range(1, len(grid)):
        if values[i] < threshold:
            share = (values[i - 1] - threshold) / (values[i - 1] - values[i])
            step = math.log(grid[i]) - math.log(grid[i - 1])
            return math.exp(math.log(grid[i - 1]) + share * step), curve
    return grid[-1], curve


def _stratified(y: Int[Tensor, " samples"], generator: torch.Generator) -> Int[Tensor, " kept"]:
    """At most `SUBSAMPLE` indices, classes in proportion (at least 2 of each)."""
    if len(y) <= SUBSAMPLE:
        return torch.arange(len(y))
    kept = []
    for k in range(int(y.max()) + 1):
        members = (y == k).nonzero()[:, 0]
        count = max(2, round(SUBSAMPLE * len(members) / len(y)))
        kept.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(kept).sort().values


def safe_density(
    inputs: Any,
    labels: Any,
    widths: Sequence[int],
    *,
    pruned_layers: int | None = None,
    private: bool = False,
    points: int = 16,
    draws: int = 4,
    loss: float = 0.1,
    generator: torch.Generator | None = None,
) -> SafeDensity:
    """How far a fully connected network may be pruned at random before training [MEASURED rule].

    min(1, 2.1 · max(hard limit, coverage limit)), from the training data and the widths alone.
    The factor was chosen on 20 settings, where it was safe in all, and was safe in 5 further ones;
    it was over-cautious by more than 3 in 4 of the 25.

    Args:
        inputs: training inputs, samples × features (further axes are flattened).
        labels: whole numbers 0 … K−1.
        widths: hidden widths.
        pruned_layers: the first so many layers are pruned; None means all.
        private: one hidden layer whose units each serve one class (the model of `simulate`).
        points: densities of the coverage curve.
        draws: path counts drawn per density.
        loss: share of (dense accuracy − 1/K) that may be lost at the coverage limit.
        generator: of the draws and the subsample; None takes a fixed one.

    Raises:
        ValueError: inputs that are not finite, labels that are not 0 … K−1, fewer than 2 classes
            or 2 points of a class, empty widths.

    Warns:
        RuntimeWarning: the answer is 1, so that nothing may be pruned.
    """
    x, y = check_data(inputs, labels)
    layers = check_widths(widths)
    _check_private(layers, pruned_layers, private)
    whole("points", points, low=2)
    whole("draws", draws, low=1)
    fraction("loss", loss)
    n_layers = len(layers) + 1
    crossed = 1 if private else n_layers if pruned_layers is None else pruned_layers
    whole("pruned_layers", crossed, low=1, high=n_layers)
    source = generator if generator is not None else generator_for(0, "at-init", "coverage")
    classes = int(y.max()) + 1
    support = _support(x, y)
    limit = hard_limit(
        layers,
        max(1, round(float(support.min()))),
        classes,
        pruned_layers=pruned_layers,
        private=private,
    )
    paths = math.prod(layers)
    lowest = min(0.5, (LOWEST_PATHS / paths) ** (1 / crossed))
    grid = torch.logspace(0, math.log10(lowest), points, dtype=torch.float64)
    kept = _stratified(y, source)
    coverage, curve = _coverage_limit(
        x[kept],
        y[kept],
        paths,
        crossed,
        grid=grid.tolist(),
        draws=draws,
        loss=loss,
        generator=source,
    )
    density = min(1.0, FACTOR * max(limit, coverage))
    if density == 1:
        warnings.warn(
            f"No density below 1 is safe for widths {layers}: 2.1 · max({limit:.3g}, "
            f"{coverage:.3g}) exceeds 1. Widen the network.",
            RuntimeWarning,
            stacklevel=2,
        )
    return SafeDensity(
        density=density,
        hard_limit=limit,
        coverage_limit=coverage,
        paths=paths * density**crossed,
        support=support,
        densities=grid,
        accuracy=curve,
    )
