"""Test loss and accuracy exact in law, and the certificate, from the pre-activations' law.

On a test point of class y the pre-activations of all R neurons are Gaussian with mean μ W e_y and
covariance σ_n² W Wᵀ, whatever the dimension; so test points are drawn in R dimensions.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.check import as_float64
from prunus.theory.at_init.data import Setting

__all__ = ["PreactivationLaw", "certificate", "certificate_of", "performance", "preactivation_law"]


@dataclass(frozen=True, eq=False)
class PreactivationLaw:
    """Gaussian law of the pre-activations of a fresh point.

    Attributes:
        shift: mean for each class of the point, μ W e_y.
        covariance: σ_n² W Wᵀ (without the signal columns where these carry no noise).
    """

    shift: Float[Tensor, "rows classes"]
    covariance: Float[Tensor, "rows rows"]


def signal_coefficients(
    setting: Setting, block: Float[Tensor, "rows signals"]
) -> Float[Tensor, "rows classes"]:
    """μ ⟨w_r, e_k⟩ for every neuron and class from the weights on the signal coordinates."""
    grouped = block.reshape(len(block), setting.classes, setting.support)
    return grouped.sum(2) * (setting.signal / math.sqrt(setting.support))


def preactivation_law(
    setting: Setting, weight: Float[Tensor, "rows dimension"]
) -> PreactivationLaw:
    """The law for masked weights W."""
    cut = setting.signal_coordinates
    noisy = weight if setting.noise_on_signal else weight[:, cut:]
    return PreactivationLaw(
        shift=signal_coefficients(setting, weight[:, :cut]),
        covariance=setting.noise**2 * (noisy @ noisy.T),
    )


def covariance_root(covariance: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    """Symmetric root; negative eigenvalues are clipped and dead rows stay exactly zero."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    dead = covariance.diagonal() <= 0
    root[dead] = 0
    root[:, dead] = 0
    return root


def accuracy_with_ties(
    outputs: Float[Tensor, "*batch classes points"], label: Int[Tensor, "*batch #points"]
) -> Float[Tensor, "*batch points"]:
    """1/(number of tied maxima) where the label's output is one of them, else 0.

    A dead network scores 1/K exactly, not the share of class 0.
    """
    best = outputs == outputs.amax(-2, keepdim=True)
    index = label.unsqueeze(-2).expand(*outputs.shape[:-2], 1, outputs.shape[-1])
    hit = best.gather(-2, index).squeeze(-2)
    return hit.to(outputs.dtype) / best.sum(-2)


def performance(
    setting: Setting, law: PreactivationLaw, normals: Float[Tensor, "rows draws"]
) -> tuple[float, float]:
    """Accuracy and cross-entropy on the test points that `normals` makes, shared by all classes.

    Args:
        setting: sizes; the standard error of the accuracy is ≤ √(acc (1 − acc) / draws).
        law: law of the pre-activations.
        normals: standard normal draws, one column per test point.
    """
    k, m = setting.classes, setting.neurons
    centred = (covariance_root(law.covariance) @ normals).reshape(k, m, -1)
    outputs = torch.stack(
        [(centred + law.shift[:, y].reshape(k, m, 1)).clamp_min_(0).sum(1) for y in range(k)]
    )
    label = torch.arange(k)[:, None]
    accuracy = accuracy_with_ties(outputs, label).mean(dtype=torch.float64)
    own = outputs[torch.arange(k), torch.arange(k)]
    loss = (outputs.logsumexp(1) - own).mean(dtype=torch.float64)
    return float(accuracy), float(loss)


def certificate_of(setting: Setting, law: PreactivationLaw) -> float:
    """`certificate` from the law of the pre-activations."""
    k, m = setting.classes, setting.neurons
    shift, covariance = law.shift.double(), law.covariance.double()
    std = covariance.diagonal().clamp_min(0).sqrt()[:, None]
    # E relu(a + t z) = a Φ(a/t) + t φ(a/t), and relu(a) for a neuron without noise
    ratio = shift / std.clamp_min(torch.finfo(torch.float64).tiny)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    relu_mean = torch.where(
        std > 0, shift * torch.special.ndtr(ratio) + std * density, shift.clamp_min(0)
    )
    mean = relu_mean.reshape(k, m, k).sum(1)  # output class × point class
    blocks = covariance.reshape(k, m, k, m)
    positive = blocks.clamp_min(0).sum((1, 3)).diagonal()
    negative = (-blocks).clamp_min(0).sum((1, 3))
    variance = positive[:, None] + positive[None, :] + 2 * negative  # σ_n² L²
    margin = (mean.diagonal()[:, None] - mean.T).clamp_min(0)  # point class × competitor
    # a margin of 0 says nothing (exponent 0); a margin without any noise is certain
    exponent = torch.where(margin > 0, margin.square() / (2 * variance), torch.zeros_like(margin))
    failure = torch.exp(-exponent)
    failure.fill_diagonal_(0)
    return float(failure.sum(1).clamp_max(1).mean())


def certificate(weight: Any, setting: Setting) -> float:
    """Upper bound on the test error of trained masked weights [PROVED].

    error ≤ (1/K) Σ_y min(1, Σ_{j≠y} exp(−D_yj² / (2 σ_n² L_yj²))), with the exact expected margin
    D_yj = max(0, E F_y − E F_j) on class y, and the Lipschitz constant of ξ ↦ F_y − F_j,
    L_yj² ≤ Σ (G_yy)₊ + Σ (G_jj)₊ + 2 Σ (−G_yj)₊, where G = W Wᵀ in blocks of m × m.

    Args:
        weight: trained masked weights W, rows k·m … k·m+m−1 are class k's neurons.
        setting: the setting the weights were trained in.

    Returns:
        bound in (0, 1]; 1 says nothing. Non-vacuous from about ρ_0 = 4 on.

    Raises:
        ValueError: `weight` is not finite or has not the setting's shape.

    References:
        Derived in docs/at_init.md: Gaussian concentration of Lipschitz functions, union bound.
    """
    matrix = as_float64("weight", weight, dims=2)
    if tuple(matrix.shape) != (setting.rows, setting.dimension):
        raise ValueError(
            f"`weight` must have shape (classes · neurons, dimension) = "
            f"({setting.rows}, {setting.dimension}), got {tuple(matrix.shape)}."
        )
    return certificate_of(setting, preactivation_law(setting, matrix))
