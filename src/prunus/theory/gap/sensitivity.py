"""How the output reacts to each weight, and predictions of the gap from it."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from prunus.check import whole
from prunus.theory.gap.stages import (
    Branches,
    LinearPair,
    Stage,
    apply_linear,
    check_stages,
    linear_stages,
    padded,
    run,
)

__all__ = [
    "UnreachedWarning",
    "curvatures",
    "predicted_diagonal",
    "predicted_kronecker",
    "predicted_random",
    "predicted_rescaled",
    "sensitivities",
]

PROBED = 64  # outputs beyond which random signs replace one backward pass per output


def sensitivities(
    stages: Sequence[Stage],
    samples: Tensor,
    *,
    probes: int | None = None,
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """S = mean over samples of Σ_outputs (∂F_o / ∂W_ab)², per layer, shaped like its weight.

    For a matrix S_ab = mean ‖J_{:a}‖² h_b², J = ∂F/∂z. One backward pass per output, or `probes`
    random sign vectors where there are more than 64 outputs (S is then unbiased).

    Args:
        stages: the dense network.
        samples: calibration inputs, batch first.
        probes: number of random sign vectors; None: exact up to 64 outputs, else 64 probes.
        generator: for the signs; a fixed one if None.
    """
    network = check_stages(stages)
    pairs = linear_stages(network)
    x = samples.to(torch.float64)
    found = {pair.name: torch.zeros_like(pair.weight) for pair in pairs}
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    result = _record(network, x, inputs, outputs).flatten(1)
    count = result.shape[1]
    if probes is None and count <= PROBED:
        directions = torch.eye(count, dtype=torch.float64)[:, None, :].expand(-1, len(x), -1)
        weight = 1.0
    else:
        number = whole("probes", PROBED if probes is None else probes, low=1)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        bits = torch.randint(0, 2, (number, len(x), count), generator=generator)
        directions = (2 * bits - 1).to(torch.float64)
        weight = 1.0 / number
    names = [pair.name for pair in pairs]
    for direction in directions:
        slopes = torch.autograd.grad(
            result, [outputs[name] for name in names], direction, retain_graph=True
        )
        for pair, slope in zip(pairs, slopes, strict=True):
            found[pair.name] += weight * _squared_gradients(pair, slope, inputs[pair.name])
    return {name: value / len(x) for name, value in found.items()}


def _record(
    stages: Sequence[Stage], x: Tensor, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> Tensor:
    for stage in stages:
        if isinstance(stage, LinearPair):
            inputs[stage.name] = x.detach()
            x = apply_linear(stage, stage.weight, stage.bias, x)
            if not x.requires_grad:
                x.requires_grad_()
            outputs[stage.name] = x
        elif isinstance(stage, Branches):
            first = _record(stage.shortcut, x, inputs, outputs)
            x = stage.join(first, _record(stage.branch, x, inputs, outputs))
        else:
            x = run([stage], x)
    return x


def _squared_gradients(pair: LinearPair, slope: Tensor, x: Tensor) -> Tensor:
    """Σ over samples of the squared gradient of one sample with respect to the weight."""
    if pair.geometry is None:
        return slope.square().T @ x.square()
    shape = pair.geometry
    high, wide = pair.weight.shape[2:]
    patches = F.unfold(padded(shape, x), (high, wide), dilation=shape.dilation, stride=shape.stride)
    total = torch.zeros_like(pair.weight).flatten(1)
    groups = shape.groups
    patches = patches.reshape(len(x), groups, -1, patches.shape[-1])
    flat = slope.reshape(len(x), groups, -1, patches.shape[-1])
    for one, other in zip(torch.split(flat, 32), torch.split(patches, 32), strict=True):
        gradient = torch.einsum("ngop,ngip->ngoi", one, other)
        total += gradient.square().sum(dim=0).reshape(total.shape)
    return total.reshape(pair.weight.shape)


def curvatures(stages: Sequence[Stage], samples: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """K = mean JᵀJ (out × out, J = ∂F/∂z) and G = mean h hᵀ (in × in) of each matrix.

    One backward pass per output; the network's matrices only, convolutions are left out.
    """
    network = check_stages(stages)
    pairs = [pair for pair in linear_stages(network) if pair.geometry is None]
    x = samples.to(torch.float64)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    result = _record(network, x, inputs, outputs).flatten(1)
    found = {pair.name: torch.zeros(2 * (len(pair.weight),), dtype=torch.float64) for pair in pairs}
    for o in range(result.shape[1]):
        slopes = torch.autograd.grad(
            result[:, o].sum(), [outputs[pair.name] for pair in pairs], retain_graph=True
        )
        for pair, slope in zip(pairs, slopes, strict=True):
            found[pair.name] += slope.T @ slope / len(x)
    return {
        name: (value, inputs[name].T @ inputs[name] / len(x)) for name, value in found.items()
    }  # fmt: skip


def predicted_kronecker(
    stages: Sequence[Stage], curvature: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Squared gap that each layer's own removed part D is predicted to cause: tr(K D G Dᵀ).

    First order, with output reactions and inputs taken as independent; the layers' values add
    where their errors are uncorrelated. For planning; a measured gap is exact.
    """
    errors = {}
    for pair in linear_stages(check_stages(stages)):
        if pair.name in curvature:
            outer, inner = curvature[pair.name]
            difference = pair.weight - pair.pruned_weight
            errors[pair.name] = float(((outer @ difference @ inner) * difference).sum())
    return errors


def predicted_diagonal(stages: Sequence[Stage], sensitivity: Mapping[str, Tensor]) -> float:
    """Predicted rms gap √Σ D² S over all layers, for at most about 10 % removed.

    Errors of single weights are taken as uncorrelated: coherent ones are missed.
    """
    warn_unreached(sensitivity)
    total = 0.0
    for pair in linear_stages(check_stages(stages)):
        if pair.name in sensitivity:
            difference = pair.weight - pair.pruned_weight
            total += float((difference.square() * sensitivity[pair.name]).sum())
    return math.sqrt(total)


class UnreachedWarning(UserWarning):
    """Many weights show no effect on the samples: the sample may be too small."""


def warn_unreached(sensitivity: Mapping[str, Tensor], share: float = 0.05) -> None:
    """One line where more than `share` of all S are exactly 0."""
    silent = sum(int((s == 0).sum()) for s in sensitivity.values())
    total = sum(s.numel() for s in sensitivity.values())
    if silent > share * total:
        warnings.warn(
            f"{silent / total:.0%} of the weights have no effect on these samples: their predicted "
            f"share of the gap is 0. Take more samples.",
            UnreachedWarning,
            stacklevel=3,
        )


def predicted_rescaled(
    weights: Mapping[str, Tensor],
    sensitivity: Mapping[str, Tensor],
    densities: Mapping[str, Tensor | float],
) -> float:
    """Predicted rms gap of rescaled random masks: √Σ W² S (1 − p) / p over all layers.

    Warns (`UnreachedWarning`) where more than 5 % of S are exactly 0.
    """
    warn_unreached(sensitivity)
    total = 0.0
    for name, p in densities.items():
        density = torch.as_tensor(p, dtype=torch.float64)
        power = weights[name].to(torch.float64).square() * sensitivity[name]
        total += float((power * (1 - density) / density).sum())
    return math.sqrt(total)


def predicted_random(
    stages: Sequence[Stage], densities: Mapping[str, float], samples: Tensor
) -> float:
    """Predicted rms gap of unscaled random masks.

    The gap of the mean network (weights p W), exact on the samples, and Σ W² S′ p (1 − p) with S′
    at the mean network. Warns (`UnreachedWarning`) where more than 5 % of S′ are exactly 0.
    """
    network = check_stages(stages)
    x = samples.to(torch.float64)
    mean = _thinned(network, densities)
    gap = (run(network, x) - run(mean, x)).flatten(1).square().sum(dim=1).mean()
    reaction = sensitivities(mean, x)
    warn_unreached(reaction)
    noise = 0.0
    for pair in linear_stages(network):
        p = float(densities.get(pair.name, 1.0))
        noise += p * (1 - p) * float((pair.weight.square() * reaction[pair.name]).sum())
    return math.sqrt(float(gap) + noise)


def _thinned(stages: Sequence[Stage], densities: Mapping[str, float]) -> tuple[Stage, ...]:
    thin: list[Stage] = []
    for stage in stages:
        if isinstance(stage, LinearPair):
            p = float(densities.get(stage.name, 1.0))
            thin.append(replace(stage, weight=p * stage.weight))
        elif isinstance(stage, Branches):
            branch = _thinned(stage.branch, densities)
            shortcut = _thinned(stage.shortcut, densities)
            thin.append(replace(stage, branch=branch, shortcut=shortcut))
        else:
            thin.append(stage)
    return tuple(thin)
