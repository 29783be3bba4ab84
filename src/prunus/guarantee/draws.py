"""How a layer's weights were drawn, where sums over the draw are known to concentrate."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.coupling import Group
from prunus.guarantee.moved import Change
from prunus.layer import Layer
from prunus.nodes import columns
from prunus.parts import EDGES, NODES

__all__ = ["Drawn", "drawn_units"]

Drawn = tuple[Tensor, Tensor, Tensor]  # odds, shares and weights (their signs) as `drawn_error`


def drawn_units(pruned: Any, layer: Layer, change: Change, share: Tensor) -> Drawn | None:
    """What `drawn_error` needs to speak of the draw that made a layer: a column per drawn unit.

    A unit is a weight, or for nodes a class of channels: all of a class's columns are kept or go
    together, so that what it gives to a sum is one term, with a share of at most the sum of theirs.
    As a class has weights of both signs in an output, it stands once for each.

    Args:
        pruned: what the user gave for the thin network; a `Pruned` knows how it was drawn.
        layer: of the dense network.
        change: its weights before and after.
        share: of its weights.

    Returns:
        None where the layer was not drawn so, was trained since, or was drawn in several rounds.
    """
    recipe, result = getattr(pruned, "recipe", None), getattr(pruned, "layers", {}).get(layer.name)
    if recipe is None or result is None or result.scale is None:
        return None
    if not recipe.selection.concentrates or recipe.units not in (EDGES, NODES):
        return None
    scale, mask = result.scale.cpu().double(), result.mask.cpu()
    weight = change.weight
    if scale.shape not in (weight.shape, (1, weight.shape[1])):
        return None
    kept = weight * scale * mask
    if not torch.allclose(kept[change.live], change.new[change.live], rtol=1e-2, atol=0):
        return None  # retrained since, or of several rounds
    scale = scale.expand(weight.shape)
    # What was not kept and has no probability of its own was not drawn: it had gone before.
    if bool(((scale == 1) & ~mask & (share > 0))[change.live].any()):
        return None
    if recipe.units == EDGES:
        return 1 / scale, share, weight
    coupling = getattr(pruned, "coupling", None)
    if coupling is None:
        return None
    groups = [group for group in coupling.groups if layer.name in group.consumers]
    return _of_classes(groups, layer, 1 / scale, share, weight)


def _of_classes(
    groups: Sequence[Group], layer: Layer, odds: Tensor, share: Tensor, weight: Tensor
) -> Drawn | None:
    """A column for every class and sign; columns of no class are certain and cost nothing."""
    places = [columns(group, layer) for group in groups]
    every = [column for place in places for column in place.flatten().tolist()]
    if not every or len({*every}) < len(every):
        return None  # nothing of it is drawn, or what is has the factors of two draws
    parts = []
    for place in places:
        own = odds[0, place]
        if not bool((own == own[:, :1]).all()):
            return None
        of = own[:, 0].expand(len(weight), -1)
        for sign in (1.0, -1.0):
            sides = (share * (weight * sign > 0))[:, place].sum(2).clamp(max=1)
            parts.append((of, sides, torch.full_like(sides, sign)))
    odds, share, signs = (torch.cat([part[i] for part in parts], 1) for i in range(3))
    return odds, share, signs
