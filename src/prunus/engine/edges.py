"""Single weights as the engine's steps see them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.allocation import CostOf, Pools
from prunus.compensation import output_error
from prunus.cost import Cost, edge_cost
from prunus.engine.checked import exact, refitted
from prunus.engine.edge_cost import EdgeCost
from prunus.engine.idle import filled_in, zeros_last
from prunus.engine.job import Job
from prunus.engine.unit import Choices, Fit, Kept, Layers, Picked
from prunus.granularity import pooled, unpooled
from prunus.joint import JointResult, is_joint
from prunus.layer import Layer, checked_scores
from prunus.nodes import BlockView, ClassView, ExpertView, UnitView
from prunus.parts import EDGES, NODES, SelectionFacts
from prunus.ranking import counted, marked_rows
from prunus.recipe import Recipe
from prunus.result import LayerResult
from prunus.rng import generator_for
from prunus.selection import Choice, is_selection
from prunus.weights import weight_at, weights_at

__all__ = ["EdgeCost", "EdgeUnit", "drawn", "edge_result", "result_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class EdgeUnit:
    """The weights of some layers; a pool's key is its layer's name.

    Attributes:
        job: what is pruned.
        recipe: the method of this step.
        layers: the selected layers.
        before: what earlier steps kept of each layer's matrix.
    """

    job: Job
    recipe: Recipe
    layers: tuple[str, ...]
    before: Mapping[str, Bool[Tensor, "out in"]]

    @property
    def refused(self) -> Mapping[str, str]:
        """Empty: layers that cannot be pruned are refused before."""
        return {}

    def among(self, known: Collection[str]) -> "EdgeUnit":
        """Without the other layers: they never ran, or do not show enough."""
        return replace(self, layers=tuple(name for name in self.layers if name in known))

    def after(
        self, model: nn.Module, masks: Mapping[str, Tensor], classes: Mapping[str, Tensor]
    ) -> "EdgeUnit":
        """Where everything outside these masks is gone."""
        own = {n: place.mask(masks) for n, place in weights_at(model, self.layers).items()}
        return replace(self, before={n: mask for n, mask in own.items() if mask is not None})

    def pools(self, layers: Layers, keys: Collection[str] | None = None) -> Pools:
        """Scores as pools; weights that an earlier step removed rank below all others.

        So do weights that were zero before, as in a checkpoint that is sparse already: nothing is
        lost with them. A pool of zeros alone, as a layer that starts at zero, keeps its scores.
        """
        pools = {}
        for name in self.layers if keys is None else keys:
            layer = layers[name]
            scores = checked_scores(name, self.recipe.score(layer), tuple(layer.weight.shape))
            if name in self.before:
                scores = scores.masked_fill(~self.before[name].to(scores.device), -torch.inf)
            pools[name] = zeros_last(self.recipe.granularity, layer, scores)
        return pools

    def blank(self, layers: Layers) -> Pools:
        """Pools of the right sizes; no entry has memory of its own."""
        found = {}
        for name in self.layers:
            nothing = torch.zeros(()).expand(layers[name].weight.shape)
            found[name] = pooled(self.recipe.granularity, layers[name], nothing)
        return found

    def left(self, layers: Layers) -> Kept:
        """Weights inside the masks of earlier steps."""
        masks = {n: (layers[n], mask) for n, mask in self.before.items() if n in layers}
        return {
            name: (pooled(self.recipe.granularity, layer, mask.to(layer.weight)) > 0).sum(1).cpu()
            for name, (layer, mask) in masks.items()
        }

    def cost(self, layers: Layers) -> CostOf:
        """The exact cost of any plan."""
        filled = {name: filled_in(self.recipe.granularity, layers[name]) for name in self.layers}
        return EdgeCost(self.job.sizes, filled, refused=self.job.not_pruned)

    def level(self, kept: Kept) -> Kept:
        """As they are."""
        return kept

    @property
    def cost_before(self) -> Cost:
        """Of the dense network."""
        sizes = self.job.sizes
        return edge_cost(sizes, {name: sizes.filled_of(name) for name in self.layers})

    @property
    def cut(self) -> None:
        """No group of channels."""
        return

    def due(self, names: Sequence[str]) -> tuple[str, ...]:
        """A layer's pools are decided when its turn comes."""
        return tuple(name for name in names if name in self.layers)

    def needs(self, keys: Collection[str]) -> tuple[str, ...]:
        """A choice reads the statistics of its own layer."""
        return tuple(keys)

    def complete(self, name: str, decided: Collection[str]) -> bool:
        """True where the layer's weights are chosen."""
        return name in decided

    def choose(
        self,
        key: str,
        layers: Layers,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        remembered: bool,
    ) -> Picked:
        """The weights of a layer that stay."""
        memo, recipe = self.job.memo, self.recipe
        if memo is None or not remembered or is_joint(recipe.selection):
            return chosen(layers[key], scores, kept, recipe, seed=self.job.seed)
        parts = (recipe.granularity, recipe.score, recipe.selection, self.job.seed, key)
        known = (*parts, tuple(kept.tolist()))
        if known not in memo:
            memo[known] = chosen(layers[key], scores, kept, recipe, seed=self.job.seed)
        return memo[known]

    def masks(self, model: nn.Module, key: str, choice: Picked) -> dict[str, Bool[Tensor, "..."]]:
        """The layer's weight."""
        weight = weight_at(model, key)
        if isinstance(choice, JointResult):
            mask = choice.mask
        else:
            mask = unpooled(self.recipe.granularity, weight.layer(), choice.mask)
        masks: dict[str, Tensor] = {}
        weight.put_mask(masks, mask)
        return masks

    def fit(self, layer: Layer, mask: Bool[Tensor, "out in"], choices: Choices) -> Fit:
        """New values of a layer's kept weights."""
        return fitted(layer, mask, choices[layer.name], self.recipe)

    def measured(
        self, layer: Layer, fit: Fit, masks: Mapping[str, Tensor]
    ) -> tuple[Fit, float | None]:
        """The values as they are, and the layer's output error."""
        return fit, output_error(layer, fit.weight, fit.bias)

    def classes(self, choices: Choices) -> dict[str, Bool[Tensor, " classes"]]:
        """None."""
        return {}


def drawn(
    rule: SelectionFacts,
    scores: Float[Tensor, "pools units"],
    kept: Int[Tensor, " pools"],
    layer: UnitView,
    seed: int,
) -> Choice:
    """A selection rule's choice, with the generator of this layer or group.

    Where more are asked for than have a score above −∞, those of them with the lowest index join.

    Raises:
        ValueError: it kept other than the counts asked for.
    """
    assert is_selection(rule)  # joint methods are called otherwise
    there = counted(scores > -torch.inf).to(kept)
    fewer = torch.minimum(kept, there)
    choice = rule(scores, fewer, layer=layer, generator=generator_for(seed, layer.name))
    if not isinstance(choice, Choice):
        raise TypeError(
            f"The selection must answer with a prunus.selection.Choice, got "
            f"{type(choice).__name__}. Return Choice(mask=…)."
        )
    if not torch.equal(fewer, kept):
        gone = scores.to(choice.mask.device) == -torch.inf
        join = gone & (gone.cumsum(1) <= (kept - fewer).to(gone.device)[:, None])
        choice = replace(choice, mask=choice.mask | join)
    counts = counted(choice.mask).cpu()
    if not torch.equal(counts, kept.cpu()):
        kinds = {ClassView: "classes of group", BlockView: "blocks of", ExpertView: "experts of"}
        kind = kinds.get(type(layer), "weights of layer")
        raise ValueError(
            f"The selection kept {int(counts.sum())} {kind} {layer.name!r} where "
            f"{int(kept.sum())} were asked for. Keep exactly the counts given."
        )
    return choice


def chosen(
    layer: Layer,
    scores: Float[Tensor, "pools units"],
    kept: Int[Tensor, " pools"],
    recipe: Recipe,
    *,
    seed: int,
) -> Picked:
    """The weights of a layer that stay: exactly the counts given."""
    if is_joint(recipe.selection):
        found = recipe.selection(layer, recipe.granularity, kept)
        return exact(layer, found, recipe.granularity, kept)
    return drawn(recipe.selection, scores, kept, layer, seed)


def fitted(layer: Layer, mask: Bool[Tensor, "out in"], choice: Picked, recipe: Recipe) -> Fit:
    """The values that the recipe gives the kept weights of a layer."""
    mask, scale = mask.to(layer.weight.device), None
    said: Mapping[str, object] = {}
    refits = recipe.compensation.refits
    if isinstance(choice, JointResult) and not refits:
        weight, bias, ridge = choice.weight, layer.bias, choice.ridge
    else:
        weight, bias, ridge, said = refitted(recipe.compensation, layer, mask)
    if isinstance(choice, Choice) and choice.scale is not None and not refits:
        scale = unpooled(recipe.granularity, layer, choice.scale).to(weight)
        weight = weight * scale
    return Fit(
        mask=mask,
        weight=weight,
        bias=bias,
        scale=scale,
        ridge=ridge,
        notes={**(choice.notes or {}), **said},
    )


def edge_result(
    layer: Layer,
    scores: Float[Tensor, "pools units"],
    kept: Int[Tensor, " pools"],
    recipe: Recipe,
    *,
    seed: int,
) -> LayerResult:
    """What the recipe does to one layer by itself.

    Args:
        layer: with the statistics that the recipe declares.
        scores: its pools.
        kept: whole numbers per pool.
        recipe: the method.
        seed: of the layer's own generator.
    """
    choice = chosen(layer, scores, kept, recipe, seed=seed)
    if isinstance(choice, JointResult):
        mask = choice.mask
    else:
        mask = unpooled(recipe.granularity, layer, choice.mask)
    fit = fitted(layer, mask, choice, recipe)
    return result_of(layer, fit, output_error(layer, fit.weight, fit.bias))


def result_of(layer: Layer, fit: Fit, error: float | None, *, units: str = EDGES) -> LayerResult:
    """The account of one layer; where nodes go, removed outputs are no error."""
    power = None
    if error is not None:
        rows = marked_rows(fit.mask) if units == NODES else None
        power = output_error(layer, torch.zeros_like(layer.weight), layer.bias, rows)
    notes = dict(fit.notes)
    solved = fit.ridge is not None and error is not None and layer.samples > 0
    kept = int(fit.mask.sum(1).max()) if solved and fit.mask.numel() else 0
    if solved and layer.samples < kept:
        notes["interpolates"] = (
            f"{layer.samples} samples for up to {kept} weights of an output: the new values fit "
            f"these samples, and the error says nothing of others"
        )
    return LayerResult(
        name=layer.name,
        mask=fit.mask,
        weight=fit.weight,
        bias=fit.bias,
        error=error,
        power=power,
        scale=fit.scale,
        ridge=fit.ridge,
        notes=notes,
    )
