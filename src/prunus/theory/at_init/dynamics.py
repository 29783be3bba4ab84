"""Three exactly alike ways to take a gradient step: primal, dual (Gram) and dimension-free.

Gradient descent never leaves w_r(0) + span{m_r ∘ x_i}: with dual variables α_r the masked weight is
m_r ∘ (w_r(0) + Xᵀ α_r), and its pre-activations move by u_r += G_r c_r, G_r = X diag(m_r) Xᵀ, where
c_r is the step's coefficient of each sample. The reduced level replaces G_r by its Gaussian law for
large d, so that its cost does not depend on d.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.rng import generator_for
from prunus.theory.at_init.data import Problem, Setting, draw_signal_block, labels_of
from prunus.theory.at_init.evaluate import PreactivationLaw, preactivation_law, signal_coefficients

__all__ = ["Dual", "Dynamics", "Primal", "Reduced", "nested_grams", "reduced_draws"]


@runtime_checkable
class Dynamics(Protocol):
    """One network in training; `advance` is the only call that changes it."""

    preactivations: Float[Tensor, "rows samples"]
    curvature: float  # λ_max: largest eigenvalue over classes of Σ_r G_kr
    kept_signal: Bool[Tensor, "rows signals"]  # mask on the signal coordinates

    def advance(self, coefficient: Float[Tensor, "rows samples"]) -> None:
        """Add Σ_i c_ri m_r ∘ x_i to every neuron's weights."""

    def law(self) -> PreactivationLaw:
        """Law of the pre-activations on a fresh point."""


def largest_eigenvalue(grams: Float[Tensor, "classes samples samples"]) -> float:
    """Largest eigenvalue over a stack of symmetric matrices."""
    return float(torch.linalg.eigvalsh(grams).amax())


class Primal:
    """Masked weights moved one by one; costs 4 n d R flops a step."""

    def __init__(self, problem: Problem, density: float) -> None:
        self.setting = problem.setting
        self.inputs = problem.inputs
        self.mask = problem.mask(density)
        self.weight = problem.weight * self.mask
        self.preactivations = self.weight @ self.inputs.T
        self.kept_signal = self.mask[:, : self.setting.signal_coordinates]
        counts = self.mask.reshape(self.setting.classes, self.setting.neurons, -1).sum(1)
        self.curvature = largest_eigenvalue(
            torch.stack([(self.inputs * c) @ self.inputs.T for c in counts.to(self.inputs.dtype)])
        )

    def advance(self, coefficient: Float[Tensor, "rows samples"]) -> None:
        self.weight += self.mask * (coefficient @ self.inputs)
        self.preactivations = self.weight @ self.inputs.T

    def law(self) -> PreactivationLaw:
        return preactivation_law(self.setting, self.weight)


class Dual:
    """Exact gradient descent in the dual variables; costs 2 n² R flops a step."""

    def __init__(
        self, problem: Problem, density: float, grams: Float[Tensor, "rows samples samples"]
    ) -> None:
        self.problem = problem
        self.grams = grams
        self.mask = problem.mask(density)
        setting = problem.setting
        self.dual = torch.zeros(setting.rows, setting.samples, dtype=problem.inputs.dtype)
        self.preactivations = (problem.weight * self.mask) @ problem.inputs.T
        self.kept_signal = self.mask[:, : setting.signal_coordinates]
        per_class = grams.reshape(setting.classes, setting.neurons, *grams.shape[1:]).sum(1)
        self.curvature = largest_eigenvalue(per_class)

    def advance(self, coefficient: Float[Tensor, "rows samples"]) -> None:
        self.dual += coefficient
        # a row times a symmetric matrix: ten times faster than the batched column form
        self.preactivations += torch.bmm(coefficient[:, None, :], self.grams)[:, 0]

    @property
    def weight(self) -> Float[Tensor, "rows dimension"]:
        """Masked weights m ∘ (w(0) + Xᵀ α)."""
        return torch.addmm(self.problem.weight, self.dual, self.problem.inputs).mul_(self.mask)

    def law(self) -> PreactivationLaw:
        return preactivation_law(self.problem.setting, self.weight)


def nested_grams(
    problem: Problem, densities: Sequence[float], chunk: int = 20
) -> Iterator[Float[Tensor, "rows samples samples"]]:
    """X diag(m_r) Xᵀ of every neuron for ascending densities, in one pass over the coordinates.

    Masks are nested, so each density only adds the coordinates with uniforms between it and the
    one before. The yielded tensor is the same each time, updated in place.
    """
    n, d = problem.inputs.shape
    rows = len(problem.uniform)
    columns = torch.cat([problem.inputs.T, problem.inputs.new_zeros(1, n)])  # row d pads
    grams = problem.inputs.new_zeros(rows, n, n)
    order = problem.uniform.argsort(1)
    ranked = problem.uniform.gather(1, order)
    done = torch.zeros(rows, dtype=torch.long)
    for density in densities:
        if density >= 1:
            grams.copy_(problem.inputs @ problem.inputs.T)
            yield grams
            continue
        upto = torch.searchsorted(
            ranked, torch.full((rows, 1), density, dtype=ranked.dtype)
        ).squeeze(1)
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            width = int((upto[part] - done[part]).amax())
            if width:
                place = done[part, None] + torch.arange(width)
                index = order[part].gather(1, place.clamp_max(d - 1))
                index = index.masked_fill(place >= upto[part, None], d)
                added = columns[index]
                grams[part].baddbmm_(added.transpose(1, 2), added)
        done = upto
        yield grams


class ReducedDraws:
    """One seed's draws of the dimension-free level, shared by all densities."""

    def __init__(self, setting: Setting, seed: int, dtype: torch.dtype) -> None:
        self.setting = setting
        self.labels = labels_of(setting)
        generator = generator_for(seed, "at-init", "reduced")
        n, rows = setting.samples, setting.rows

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.signals = draw_signal_block(setting, self.labels, generator).to(dtype)
        self.weight = (normal(rows, setting.signal_coordinates) * setting.init_scale).to(dtype)
        self.uniform = torch.rand(
            rows, setting.signal_coordinates, generator=generator, dtype=torch.float64
        )
        self.first = normal(rows, n).to(dtype)  # of the initial pre-activations
        self.own = normal(rows, n).to(dtype)  # crosstalk through a neuron's own mask
        half = normal(n, n)
        self.shared = ((half + half.T) / math.sqrt(2)).to(dtype)  # N(0,1), N(0,2) on the diagonal


def reduced_draws(setting: Setting, seed: int, dtype: torch.dtype) -> ReducedDraws:
    """Draws for `Reduced`; their size does not depend on the dimension."""
    return ReducedDraws(setting, seed, dtype)


class Reduced:
    """Large-d law of the dual dynamics [HEURISTIC]; signal coordinates are kept exactly.

    With D noise coordinates, h, h0 and g standard normal (g symmetric) and signal weights w_s,
    u = σ_0 σ_n √(pD) h0 + w_s X_sᵀ + p D σ_n² α + σ_n² √D p α g + σ_n² √(D p (1−p)) |α_r| h.
    """

    def __init__(self, draws: ReducedDraws, density: float) -> None:
        setting = draws.setting
        self.draws, self.density = draws, density
        self.kept_signal = draws.uniform < density
        self.signal_weight = draws.weight * self.kept_signal
        self.dual = draws.first.new_zeros(setting.rows, setting.samples)
        noise_power = density * setting.noise_dimension * setting.noise**2
        self.first = setting.init_scale * math.sqrt(noise_power) * draws.first
        self.noise_power = noise_power
        kept = self.kept_signal.reshape(setting.classes, setting.neurons, setting.classes, -1)
        own = kept.sum((1, 3)).diagonal() / setting.support  # S_k for a support of one
        spread = (
            1 + math.sqrt(setting.samples * setting.noise**2 / (setting.neurons * noise_power))
        ) ** 2
        self.curvature = float(
            own.max() * setting.per_class * setting.signal**2
            + setting.neurons * noise_power * spread
        )
        self.preactivations = self._preactivations()

    def _preactivations(self) -> Float[Tensor, "rows samples"]:
        s, p = self.draws.setting, self.density
        root = s.noise**2 * math.sqrt(s.noise_dimension)
        norm: Tensor = self.dual.square().sum(1, keepdim=True).sqrt()
        return (
            self.first
            + self.signal_weight @ self.draws.signals.T
            + self.noise_power * self.dual
            + root * p * (self.dual @ self.draws.shared)
            + root * math.sqrt(p * (1 - p)) * norm * self.draws.own
        )

    def advance(self, coefficient: Float[Tensor, "rows samples"]) -> None:
        self.dual += coefficient
        self.signal_weight += self.kept_signal * (coefficient @ self.draws.signals)
        self.preactivations = self._preactivations()

    def law(self) -> PreactivationLaw:
        s, p, dual = self.draws.setting, self.density, self.dual
        power = s.noise_dimension * s.noise**2
        shared = p**2 * (
            power * (dual @ dual.T)
            + s.noise**2 * math.sqrt(s.noise_dimension) * (dual @ self.draws.shared @ dual.T)
        )
        private = (
            (p - p**2) * power * dual.square().sum(1)
            + p * s.noise_dimension * s.init_scale**2
            + 2 * (dual * self.first).sum(1)
        )
        covariance = shared + torch.diag(private.clamp_min(0))
        if s.noise_on_signal:
            covariance = covariance + self.signal_weight @ self.signal_weight.T
        return PreactivationLaw(
            shift=signal_coefficients(s, self.signal_weight), covariance=s.noise**2 * covariance
        )
