"""Choices written into a network: masks, new values, and the account of every layer."""

from torch import Tensor, nn

from prunus.engine.edges import mask_of, result_of
from prunus.engine.unit import Choices, Fit, Layers, Unit
from prunus.result import LayerResult
from prunus.surgery.masked import apply_masks
from prunus.weights import weight_at

__all__ = ["Masks", "merged", "new_values", "write"]

Masks = dict[str, Tensor]


def merged(masks: Masks, more: Masks) -> Masks:
    """What both leave."""
    both = {
        name: masks[name] & mask if name in masks else mask.contiguous()
        for name, mask in more.items()
    }
    return {**masks, **both}


def write(
    model: nn.Module, unit: Unit, layers: Layers, choices: Choices
) -> tuple[Masks, dict[str, LayerResult]]:
    """Write all choices into `model` at once, from statistics of all its layers.

    Args:
        model: changed in place.
        unit: what was chosen.
        layers: with their statistics.
        choices: of all pools that lose something.
    """
    masks: Masks = {}
    for key, choice in choices.items():
        masks = merged(masks, unit.masks(model, key, choice))
    results, written = {}, set()
    for name in unit.needs(choices):
        fit = new_values(model, unit, layers, name, choices, masks)
        done, error = unit.measured(layers[name], fit, masks)
        place = weight_at(model, name)
        place.put(done.weight, done.bias)
        written.add(place.path)
        results[name] = result_of(layers[name], done, error, units=unit.recipe.units)
    apply_masks(model, {path: mask for path, mask in masks.items() if path not in written})
    return masks, results


def new_values(
    model: nn.Module, unit: Unit, layers: Layers, name: str, choices: Choices, masks: Masks
) -> Fit:
    """What becomes of one layer by the choices made so far."""
    return unit.fit(layers[name], mask_of(model, name, masks), choices)
