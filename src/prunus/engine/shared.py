"""Layers whose weights a model uses twice, and which new values must therefore not be fitted to."""

from collections.abc import Sequence

from torch import nn

from prunus.coupling import used_elsewhere
from prunus.hints import Batch
from prunus.recipe import Recipe

__all__ = ["unfit"]


def unfit(
    recipe: Recipe, model: nn.Module, names: Sequence[str], example: Batch
) -> tuple[list[str], dict[str, str]]:
    """The layers that the recipe may refit, and {layer: reason} of the others.

    Raises:
        ValueError: there is no layer that it may refit; the reasons are given.
    """
    if example is None or not recipe.refits:
        return list(names), {}
    uses = used_elsewhere(model, example)
    refused = {
        name: f"its weight is also used outside the layer (by {uses[name]}), so that its inputs do "
        f"not say what new values cost; take a recipe that keeps the values"
        for name in names
        if name in uses
    }
    left = [name for name in names if name not in refused]
    if not left:
        said = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise ValueError(f"No layer is left that this recipe can prune ({said}).")
    return left, refused
