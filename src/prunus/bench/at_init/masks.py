"""Masks at initialisation for many densities at once, and He's first weights."""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.bench.data.models import mlp
from prunus.budget import count_of
from prunus.calibration import calibrate
from prunus.calibration.flow import ones_like_input, path_flow
from prunus.calibration.select import prunable
from prunus.check import unknown
from prunus.presets import recipes
from prunus.rng import generator_for
from prunus.schedules import AtInit
from prunus.scores import grasp, snip, synflow
from prunus.selection import top_k_mask

__all__ = [
    "METHODS",
    "Masks",
    "built",
    "he_mlp",
    "hidden_widths",
    "masks_at_init",
    "parameter_of",
    "weight_of",
]

METHODS = ("random-init", "snip", "grasp", "synflow")

Masks = dict[str, Bool[Tensor, "..."]]


def he_mlp(features: int, widths: Sequence[int], classes: int, seed: int) -> nn.Sequential:
    """A ReLU network with biases of zero and weights N(0, 2/inputs) (He et al., 2015)."""
    model = mlp([features, *widths, classes])
    generator = generator_for(seed, "at-init", "he")
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, math.sqrt(2 / module.in_features), generator=generator)
                module.bias.zero_()
    return model


def built(
    make: Callable[[int, int, int], nn.Module], features: int, classes: int, seed: int
) -> nn.Module:
    """The user's untrained network.

    Raises:
        ValueError: `make` does not take (features, classes, seed), or returns no module.
    """
    name = getattr(make, "__name__", type(make).__name__)
    want = f"`model` {name} must be a function (features, classes, seed) -> torch.nn.Module"
    try:
        signature = inspect.signature(make)
    except ValueError:  # some functions written in C have none; the call itself will tell
        signature = None
    if signature is not None:
        try:
            signature.bind(features, classes, seed)
        except TypeError as error:
            raise ValueError(f"{want}: {error}.") from None
    network = make(features, classes, seed)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{want}, got a {type(network).__name__} from it.")
    return network


def hidden_widths(model: nn.Module) -> list[int]:
    """Hidden widths of a chain of linear layers, as `safe_density` takes them.

    Raises:
        ValueError: a layer that is not linear, layers that do not feed one another in the order
            in which the model holds them, or no hidden layer.
    """
    found, refused = prunable(model)
    cure = "Give the hidden widths of the nearest fully connected network instead."
    layers: list[tuple[str, nn.Linear]] = []
    for name, weight in found.items():
        module = weight.module
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"The estimate covers chains of linear layers, but {name!r} is a "
                f"{type(module).__name__}. {cure}"
            )
        layers.append((name, module))
    if refused:
        name, reason = next(iter(refused.items()))
        raise ValueError(f"The estimate cannot read layer {name!r}: {reason}. {cure}")
    for (first, before), (second, after) in itertools.pairwise(layers):
        if before.out_features != after.in_features:
            raise ValueError(
                f"{first!r} has {before.out_features} outputs and {second!r} after it "
                f"{after.in_features} inputs: no chain of layers. {cure}"
            )
    if len(layers) < 2:
        raise ValueError(f"The model has {len(layers)} linear layers, so no hidden layer. {cure}")
    return [module.out_features for _, module in layers[:-1]]


def masks_at_init(
    model: nn.Module,
    method: str,
    densities: Sequence[float],
    data: Any,
    *,
    names: Sequence[str],
    seed: int,
) -> list[Masks]:
    """The masks that the recipe of this name gives for each density, all at once.

    They are those of `prunus.prune(model, method, density, data=data, seed=seed)`; scores are
    computed once for all densities where the recipe has a single round.

    Args:
        model: the untrained network.
        method: one of `METHODS`.
        densities: in (0, 1].
        data: batches (inputs, labels).
        names: the layers that are pruned.
        seed: of random masks.
    """
    if method not in METHODS:
        raise unknown("method at initialisation", method, METHODS)
    modules = {name: model.get_submodule(name) for name in names}
    weights = {name: weight_of(module) for name, module in modules.items()}
    if method == "random-init":
        return [_random_masks(weights, density, seed) for density in densities]
    if method == "synflow":
        schedule = recipes[method].schedule
        assert isinstance(schedule, AtInit)
        ones = ones_like_input(data)
        return [_synflow_masks(model, weights, d, schedule.rounds, ones) for d in densities]
    statistic = "grad" if method == "snip" else "hessian_grad"
    found = calibrate(model, data, (statistic,), layers=list(names), progress=False)
    score = snip if method == "snip" else grasp
    scores = {name: score(found[name].weight, getattr(found[name], statistic)) for name in names}
    return [_global_masks(scores, count_of(density, _total(weights))) for density in densities]


def weight_of(module: Any) -> Tensor:
    """A module's weight as a matrix, detached."""
    weight: Tensor = module.weight
    return weight.detach().flatten(1)


def _total(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _random_masks(weights: Mapping[str, Tensor], density: float, seed: int) -> Masks:
    """Exact counts per layer; one uniform per weight and seed, so masks are nested."""
    masks = {}
    for name, weight in weights.items():
        keys = torch.rand(
            (1, weight.numel()), dtype=torch.float64, generator=generator_for(seed, name)
        )
        kept = torch.tensor([count_of(density, weight.numel())])
        masks[name] = top_k_mask(keys, kept).reshape(weight.shape)
    return masks


def _global_masks(scores: Mapping[str, Tensor], kept: int) -> Masks:
    """The `kept` best of all layers; ties to the lower index."""
    pool = torch.cat([score.flatten() for score in scores.values()])[None]
    mask = top_k_mask(pool, torch.tensor([kept]))[0]
    parts = torch.split(mask, [score.numel() for score in scores.values()])
    return {
        name: part.reshape(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _synflow_masks(
    model: nn.Module, weights: Mapping[str, Tensor], density: float, rounds: int, ones: Tensor
) -> Masks:
    """Rounds at densities d^(1/N), d^(2/N), … d; what a round removed ranks below all else."""
    total = _total(weights)
    masks: Masks = {name: torch.ones_like(weight).bool() for name, weight in weights.items()}
    for i in range(rounds):
        kept = {name: weights[name] * masks[name] for name in weights}
        shaped = {
            f"{name}.weight": value.abs().reshape(parameter_of(model, name).shape)
            for name, value in kept.items()
        }
        _, flow = path_flow(model, shaped, ones)
        scores = {
            name: synflow(kept[name], flow[f"{name}.weight"].flatten(1)).masked_fill(
                ~masks[name], -torch.inf
            )
            for name in weights
        }
        masks = _global_masks(scores, count_of(density ** ((i + 1) / rounds), total))
    return masks


def parameter_of(model: nn.Module, name: str) -> Tensor:
    """The weight of the module of this name."""
    module: Any = model.get_submodule(name)
    parameter: Tensor = module.weight
    return parameter
