"""Masks at initialisation for many densities at once, and He's first weights."""

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.ambient import quiet
from prunus.bench.data.models import mlp
from prunus.calibration import calibrate
from prunus.calibration.select import prunable
from prunus.check import unknown
from prunus.engine import prune
from prunus.engine.calibrated import shares
from prunus.presets import recipes
from prunus.rng import generator_for
from prunus.surgery.connected import Disconnected

__all__ = ["METHODS", "Masks", "built", "he_mlp", "hidden_widths", "masks_at_init"]

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
    """The masks that `prunus.prune` gives by the recipe of this name, for each density.

    The data are read once for all densities where the recipe has a single round.

    Args:
        model: the untrained network.
        method: one of `METHODS`.
        densities: in (0, 1].
        data: batches (inputs, labels).
        names: the layers that are pruned.
        seed: of random masks.

    Returns:
        for each density {layer: True where a weight is kept}, as matrices (out, in).
    """
    if method not in METHODS:
        raise unknown("method at initialisation", method, METHODS)
    recipe = recipes[method]
    source = data if recipe.needs_data else None
    if recipe.needs_data and all(shares(recipe, density) for density in densities):
        source = calibrate(model, data, recipe.statistics, layers=list(names), progress=False)
    found = []
    for density in densities:
        with quiet(Disconnected):  # a sweep says it of all its masks together
            pruned = prune(
                model,
                recipe,
                density,
                data=source,
                layers=list(names),
                seed=seed,
                progress=False,
                measure=False,
            )
        found.append({name: pruned.layers[name].mask for name in names})
    return found
