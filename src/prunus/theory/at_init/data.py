"""The data and the network at initialisation: sparse signals in Gaussian noise, nested masks.

The setting is that of Yang et al. (2025; arXiv 2301.00335, 2023): x = μ e_y + ξ with
ξ ~ N(0, σ_n² I_d), and a two-layer network F_k(x) = Σ_r relu(⟨m_kr ∘ w_kr, x⟩) with m neurons for
each of K classes and a fixed second layer. All statements about it in this package are our own;
the constants of their theorems are not used anywhere.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.check import positive, whole
from prunus.rng import generator_for

__all__ = ["Problem", "Setting", "as_densities", "as_seeds", "check_density", "draw_problem"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes and strengths of the model; the defaults are experiment A of docs/at_init.md.

    Attributes:
        classes: K ≥ 2, labels uniform; class sizes y_i = i mod K.
        samples: n ≥ K training points.
        dimension: d > K · support inputs.
        neurons: m ≥ 1 hidden units of each class; K·m in all.
        signal: μ ≥ 0, the length of a class's mean.
        noise: σ_n > 0, per coordinate.
        init_scale: σ_0 ≥ 0, standard deviation of the first weights.
        support: s, coordinates k·s … k·s+s−1 carry class k's mean, each with μ/√s.
        noise_on_signal: whether ξ also falls on the signal coordinates.
    """

    classes: int = 4
    samples: int = 60
    dimension: int = 4096
    neurons: int = 50
    signal: float = 6.0
    noise: float = 1.0
    init_scale: float = 1e-4
    support: int = 1
    noise_on_signal: bool = True

    def __post_init__(self) -> None:
        whole("classes", self.classes, low=2)
        whole("samples", self.samples, low=self.classes)
        whole("neurons", self.neurons, low=1)
        whole("support", self.support, low=1)
        whole("dimension", self.dimension, low=1)
        if self.dimension <= self.signal_coordinates:
            raise ValueError(
                f"`dimension` must exceed classes · support = {self.signal_coordinates}, got "
                f"{self.dimension}: no noise coordinates are left. Raise it or lower `support`."
            )
        positive("signal", self.signal, zero=True)
        positive("noise", self.noise)
        positive("init_scale", self.init_scale, zero=True)

    @property
    def rows(self) -> int:
        """R = K·m, the neurons of the whole network; neuron r of class k is row k·m + r."""
        return self.classes * self.neurons

    @property
    def signal_coordinates(self) -> int:
        """K·s."""
        return self.classes * self.support

    @property
    def noise_dimension(self) -> int:
        """D = d − K·s."""
        return self.dimension - self.signal_coordinates

    @property
    def per_class(self) -> float:
        """n_k = n/K, the mean class size."""
        return self.samples / self.classes

    @property
    def signal_to_noise(self) -> float:
        """ρ_0 = √(n/K) μ² / (√d σ_n²), that of the one-template classifier."""
        return (
            math.sqrt(self.per_class) * self.signal**2 / (math.sqrt(self.dimension) * self.noise**2)
        )


@dataclass(frozen=True, eq=False)
class Problem:
    """One seed's draws, shared by all densities: masks are nested, m = 1{uniform < density}."""

    setting: Setting
    inputs: Float[Tensor, "samples dimension"]
    labels: Int[Tensor, " samples"]
    weight: Float[Tensor, "rows dimension"]
    uniform: Float[Tensor, "rows dimension"]

    def mask(self, density: float) -> Bool[Tensor, "rows dimension"]:
        """Bernoulli(density) mask; True where a weight is kept."""
        return self.uniform < density


def check_density(name: str, value: float) -> float:
    """`value` as a density in (0, 1]; 0 is refused, for nothing would be kept."""
    number = float(value)
    if not 0 < number <= 1:
        raise ValueError(
            f"`{name}` must be a density (kept / total) in (0, 1], got {value!r}."
            + (" Nothing would be kept." if number == 0 else "")
        )
    return number


def as_densities(densities: Any) -> list[float]:
    """Densities in the caller's order, or a ValueError for an empty list or a bad one."""
    values = torch.as_tensor(densities, dtype=torch.float64).flatten().tolist()
    if not values:
        raise ValueError("`densities` must hold at least one density in (0, 1], got none.")
    return [check_density("densities", value) for value in values]


def as_seeds(seeds: int | Sequence[int], generator: torch.Generator | None) -> list[int]:
    """A count of seeds or the seeds themselves; with a generator a count is drawn from it."""
    if isinstance(seeds, Sequence):
        found = [whole("seeds", seed, low=0) for seed in seeds]
        if not found:
            raise ValueError("`seeds` must hold at least one seed, got none.")
        return found
    count = whole("seeds", seeds, low=1)
    if generator is None:
        return list(range(count))
    return [int(x) for x in torch.randint(2**62, (count,), generator=generator)]


def labels_of(setting: Setting) -> Int[Tensor, " samples"]:
    """y_i = i mod K; warns where the classes cannot have equal sizes."""
    labels = torch.arange(setting.samples) % setting.classes
    if setting.samples % setting.classes:
        sizes = torch.bincount(labels, minlength=setting.classes).tolist()
        warnings.warn(
            f"samples = {setting.samples} is not divisible by classes = {setting.classes}: "
            f"the class sizes are {sizes}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return labels


def draw_signal_block(
    setting: Setting, labels: Int[Tensor, " samples"], generator: torch.Generator
) -> Float[Tensor, "samples signals"]:
    """The signal coordinates of the data: the mean of the label's class, plus noise if it has any.

    Returns:
        float64 values of the first K·s coordinates, class after class.
    """
    means = torch.eye(setting.classes, dtype=torch.float64).repeat_interleave(setting.support, 1)
    block = means[labels] * (setting.signal / math.sqrt(setting.support))
    noise = torch.randn(block.shape, generator=generator, dtype=torch.float64)
    return block + setting.noise * noise if setting.noise_on_signal else block


def draw_problem(setting: Setting, seed: int, dtype: torch.dtype = torch.float64) -> Problem:
    """Data, first weights and mask uniforms of one seed, drawn in float64 and then cast.

    Args:
        setting: sizes and strengths.
        seed: two calls with one seed give the same draws, whatever the dtype.
        dtype: of the inputs and weights.
    """
    labels = labels_of(setting)
    data = generator_for(seed, "at-init", "data")
    inputs = torch.empty(setting.samples, setting.dimension, dtype=torch.float64)
    cut = setting.signal_coordinates
    inputs[:, :cut] = draw_signal_block(setting, labels, data)
    inputs[:, cut:].normal_(generator=data).mul_(setting.noise)
    shape = (setting.rows, setting.dimension)
    weight = torch.randn(
        shape, generator=generator_for(seed, "at-init", "weight"), dtype=torch.float64
    )
    uniform = torch.rand(
        shape, generator=generator_for(seed, "at-init", "mask"), dtype=torch.float64
    )
    return Problem(
        setting, inputs.to(dtype), labels, (weight * setting.init_scale).to(dtype), uniform
    )
