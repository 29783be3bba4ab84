"""Choices written into a network: masks, new values, and the account of every layer."""

from torch import Tensor, nn

from prunus.engine.edges import result_of
from prunus.engine.unit import Choices, Fit, Layers, Unit
from prunus.result import LayerResult
from prunus.surgery.masked import apply_masks
from prunus.weights import Weight, weights_at

__all__ = ["Masks", "merged", "new_values", "write"]

Masks = dict[str, Tensor]


def merged(masks: Masks, *more: Masks) -> Masks:
    """What all leave."""
    found = dict(masks)
    for own in more:
        for name, mask in own.items():
            found[name] = _both(found[name], mask) if name in found else mask
    return {name: mask.contiguous() for name, mask in found.items()}


def _both(one: Tensor, other: Tensor) -> Tensor:
    """What two masks leave; an axis along which both hold their entries once goes on so."""
    here, there = _once(one), _once(other)
    here = here.expand([max(sizes) for sizes in zip(here.shape, there.shape, strict=True)])
    return (here.contiguous() & there).expand(one.shape)


def _once(mask: Tensor) -> Tensor:
    """A mask with length 1 along the axes on which it holds its entries once."""
    for axis, step in enumerate(mask.stride()):
        if step == 0 and mask.shape[axis] > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask


def write(
    model: nn.Module, unit: Unit, layers: Layers, choices: Choices
) -> tuple[Masks, dict[str, LayerResult]]:
    """Write all choices into `model` at once, from statistics of all its layers.

    Args:
        model: changed in place.
        unit: what was chosen.
        layers: with their statistics.
        choices: of all pools that lose something.

    Returns:
        the masks, in which every masked entry is +0 now, and the account of every layer.
    """
    masks = merged({}, *(unit.masks(model, key, choice) for key, choice in choices.items()))
    results, exact = {}, set()
    for name, place in weights_at(model, unit.needs(choices)).items():
        fit = new_values(place, unit, layers, choices, masks)
        done, error = unit.measured(layers[name], fit, masks)
        place.put(done.weight, done.bias)
        if done.within is done.mask and place.source.index is None:
            exact.add(place.path)
        results[name] = result_of(layers[name], done, error, units=unit.recipe.units)
    apply_masks(model, {path: mask for path, mask in masks.items() if path not in exact})
    return masks, results


def new_values(place: Weight, unit: Unit, layers: Layers, choices: Choices, masks: Masks) -> Fit:
    """What becomes of one layer by the choices made so far."""
    return unit.fit(layers[place.name], place.kept(masks), choices)
