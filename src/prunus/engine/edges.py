"""One step of pruning single weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunus.compensation import output_error
from prunus.cost import Anatomy, Cost, edge_cost
from prunus.granularity import pooled, unpooled
from prunus.joint import JointResult, is_joint
from prunus.layer import Layer, checked_scores
from prunus.nodes import ClassView
from prunus.parts import SelectionFacts
from prunus.recipe import Recipe
from prunus.result import LayerResult
from prunus.rng import generator_for
from prunus.selection import Choice, is_selection

__all__ = ["EdgeCost", "drawn", "edge_result", "filled_in", "pools_of"]


@dataclass(frozen=True, eq=False)
class EdgeCost:
    """The exact cost of so many kept weights per pool; what was zero before goes first.

    Attributes:
        sizes: of the network.
        filled: weights of each pool that are not zero; all of them where None.
    """

    sizes: Anatomy
    filled: Mapping[str, Int[Tensor, " pools"]] | None = None
    nodes: bool = False
    multiple_of: int = 1

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]:
        """Empty: a layer's weights are its own."""
        return {}

    @property
    def refused(self) -> Mapping[str, str]:
        """Empty: layers that cannot be pruned are refused before."""
        return {}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every layer's weight, kernel axes included."""
        return {name: self.sizes.weight_shape(name) for name in self.sizes.weights}

    def __call__(self, kept: Mapping[str, Int[Tensor, " pools"]]) -> Cost:
        """The whole network's cost."""
        counts = {
            name: int((k if self.filled is None else torch.minimum(k, self.filled[name])).sum())
            for name, k in kept.items()
        }
        return edge_cost(self.sizes, counts)


def pools_of(
    layers: Mapping[str, Layer], recipe: Recipe, before: Mapping[str, Bool[Tensor, "out in"]]
) -> dict[str, Float[Tensor, "pools units"]]:
    """Scores as pools; weights that an earlier step removed rank below all others.

    So do weights that were zero before, as in a checkpoint that is sparse already: nothing is lost
    with them. A pool of zeros alone, as a layer that starts at zero, keeps its scores.
    """
    pools = {}
    for name, layer in layers.items():
        scores = checked_scores(name, recipe.score(layer), tuple(layer.weight.shape))
        if name in before:
            scores = scores.masked_fill(~before[name].to(scores.device), -torch.inf)
        own = pooled(recipe.granularity, layer, scores)
        idle = ~filled_in(recipe, layer).to(scores.device)
        pools[name] = own.masked_fill(idle & ~idle.all(1, keepdim=True), -torch.inf)
    return pools


def filled_in(recipe: Recipe, layer: Layer) -> Bool[Tensor, "pools units"]:
    """True for the units of each pool whose weight is not zero."""
    return pooled(recipe.granularity, layer, (layer.weight != 0).float()) > 0


def drawn(
    rule: SelectionFacts,
    scores: Float[Tensor, "pools units"],
    kept: Int[Tensor, " pools"],
    layer: Layer | ClassView,
    seed: int,
) -> Choice:
    """A selection rule's choice, with the generator of this layer or group.

    Where more are asked for than have a score above −∞, those of them with the lowest index join.
    """
    assert is_selection(rule)  # joint methods are called otherwise
    there = (scores > -torch.inf).sum(1).to(kept)
    fewer = torch.minimum(kept, there)
    choice = rule(scores, fewer, layer=layer, generator=generator_for(seed, layer.name))
    if torch.equal(fewer, kept):
        return choice
    gone = scores.to(choice.mask.device) == -torch.inf
    join = gone & (gone.cumsum(1) <= (kept - fewer).to(gone.device)[:, None])
    return replace(choice, mask=choice.mask | join)


def edge_result(
    layer: Layer,
    scores: Float[Tensor, "pools units"],
    kept: Int[Tensor, " pools"],
    recipe: Recipe,
    *,
    seed: int,
    choose: Callable[[], Choice] | None = None,
    joint: JointResult | None = None,
) -> LayerResult:
    """What the recipe does to one layer.

    Args:
        layer: with the statistics that the recipe declares.
        scores: its pools.
        kept: whole numbers per pool.
        recipe: the method.
        seed: of the layer's own generator.
        choose: a remembered choice to take instead of drawing one.
        joint: what a `NetworkJoint` found for this layer.
    """
    ridge = scale = None
    notes: dict[str, Any] = {}
    rule = recipe.selection
    if joint is None and is_joint(rule):
        joint = rule(layer, recipe.granularity, kept)
    if joint is not None:
        mask, weight, bias, ridge = joint.mask, joint.weight, layer.bias, joint.ridge
        notes = dict(joint.notes or {})
        if recipe.compensation.refits:
            weight, bias, ridge = recipe.compensation.fit(layer, mask)
    else:
        choice = choose() if choose is not None else drawn(rule, scores, kept, layer, seed)
        notes = dict(choice.notes)
        counts = choice.mask.sum(1).cpu()
        if not torch.equal(counts, kept.cpu()):
            raise ValueError(
                f"The selection kept {int(counts.sum())} weights of layer {layer.name!r} where "
                f"{int(kept.sum())} were asked for. Keep exactly the counts given."
            )
        mask = unpooled(recipe.granularity, layer, choice.mask).to(layer.weight.device)
        weight, bias, ridge = recipe.compensation.fit(layer, mask)
        if choice.scale is not None and not recipe.compensation.refits:
            scale = unpooled(recipe.granularity, layer, choice.scale).to(weight)
            weight = weight * scale
    if bool((weight[~mask] != 0).any()):
        raise ValueError(
            f"The compensation of layer {layer.name!r} left weights outside the mask. "
            f"Return exact zeros there."
        )
    return LayerResult(
        name=layer.name,
        mask=mask,
        weight=weight,
        bias=bias,
        error=output_error(layer, weight, bias),
        scale=scale,
        ridge=ridge,
        notes=notes,
    )
