"""Channel classes as the engine's steps see them."""

from collections.abc import Callable, Collection, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.allocation import Pools
from prunus.compensation import output_error
from prunus.cost import Cost
from prunus.coupling import Group
from prunus.engine.checked import refitted
from prunus.engine.edges import drawn
from prunus.engine.groups import NodeCost, none_left
from prunus.engine.job import Job
from prunus.engine.unit import Choices, Fit, Kept, Layers, Picked
from prunus.layer import Layer
from prunus.nodes import ClassView, class_view, columns, parameter_masks
from prunus.ranking import marked_rows
from prunus.recipe import Recipe
from prunus.scores import class_scores
from prunus.selection import Choice
from prunus.zeros import with_zeros

__all__ = ["NodeUnit"]


@dataclass(frozen=True, eq=False, kw_only=True)
class NodeUnit:
    """The channel classes of some groups; a pool's key is its group's name.

    Attributes:
        job: what is pruned.
        recipe: the method of this step.
        groups: by name.
        before: the classes that earlier steps kept.
        refused: {layer: reason} of those whose channels stay.
        alike: names of groups that must keep equal numbers.
        alive: the classes of each group that are not dead already.
        parameters: of the network as it is, by name.
        buffers: names of the network's buffers.
        latency: the share of the dense latency that so many classes cost, where a budget needs it.
        products: multiply-adds between computed values that go with a class of each group.
        found: what rules remember of the statistics; see `ClassView`. Only where these are the
            same at every choice.
    """

    job: Job
    recipe: Recipe
    groups: Mapping[str, Group]
    before: Mapping[str, Bool[Tensor, " classes"]]
    refused: Mapping[str, str]
    alike: Sequence[tuple[str, ...]]
    alive: Mapping[str, Bool[Tensor, " classes"]]
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Collection[str] = ()
    latency: Callable[[Mapping[str, int]], float] | None = None
    products: Mapping[str, float] = field(default_factory=dict)
    found: MutableMapping[Hashable, object] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """Producers and consumers of the groups."""
        return self.needs(self.groups)

    def among(self, known: Collection[str]) -> "NodeUnit":
        """Without the groups of which a layer is not known, as where code uses its weight alone.

        Raises:
            ValueError: no group is left.
        """
        groups = {}
        refused = dict(self.refused)
        for key, group in self.groups.items():
            unknown = [name for name in self.needs([key]) if name not in known]
            if unknown:
                why = f"this recipe needs the inputs of {', '.join(unknown)}, which reads its "
                why += "channels and does not show them: the code uses its weight without it"
                refused.update(dict.fromkeys(group.producers, why))
            else:
                groups[key] = group
        if not groups:
            raise none_left({**refused, **self.job.not_pruned})
        if len(groups) == len(self.groups):
            return self
        alike = tuple(names for names in self.alike if groups.keys() >= set(names))
        return replace(self, groups=groups, refused=refused, alike=alike)

    def after(
        self, model: nn.Module, masks: Mapping[str, Tensor], classes: Mapping[str, Tensor]
    ) -> "NodeUnit":
        """Where all other classes are gone, of this model's weights."""
        return replace(self, before=classes, parameters=dict(model.named_parameters()))

    def pools(self, layers: Layers, keys: Collection[str] | None = None) -> Pools:
        """The pools of groups; classes that an earlier step removed rank below all others.

        So do classes that were dead before; a group of dead classes alone keeps its scores.
        """
        pools = {}
        for key in self.groups if keys is None else keys:
            scores = class_scores(self.view(key, layers), self.recipe.score)
            if key in self.before:
                scores = scores.masked_fill(~self.before[key], -torch.inf)
            if bool(self.alive[key].any()):
                scores = scores.masked_fill(~self.alive[key], -torch.inf)
            pools[key] = scores.view(self.groups[key].pools, -1)
        return pools

    def blank(self, layers: Layers) -> Pools:
        """Pools of the right sizes."""
        return {
            key: torch.zeros(group.pools, group.size // group.pools)
            for key, group in self.groups.items()
        }

    def left(self, layers: Layers) -> Kept:
        """Classes that earlier steps kept."""
        del layers
        return {
            key: self.before[key].view(group.pools, -1).sum(1)
            for key, group in self.groups.items()
            if key in self.before
        }

    def cost(self, layers: Layers) -> NodeCost:
        """The exact cost of any plan."""
        return self.costs

    @cached_property
    def costs(self) -> NodeCost:
        """The exact cost of any plan, which no layer's statistics change."""
        return NodeCost(
            self.job.sizes,
            self.cut,
            self.recipe.granularity.multiple_of,
            latency=self.latency,
            refused=self.refused,
            alike=self.alike,
            alive={name: int(units.sum()) for name, units in self.alive.items()},
            products=self.products,
        )

    def level(self, kept: Kept) -> Kept:
        """Counts in which groups that must be alike keep what the least of them does."""
        return self.costs.level(kept)

    @property
    def cost_before(self) -> Cost:
        """Of the dense network."""
        return self.costs.prices({key: group.size for key, group in self.groups.items()})

    @property
    def cut(self) -> tuple[Group, ...]:
        """All groups."""
        return tuple(self.groups.values())

    def view(self, key: str, layers: Layers) -> ClassView:
        """A group with its layers and their statistics."""
        return class_view(self.groups[key], layers, self.parameters, self.found)

    def due(self, names: Sequence[str]) -> tuple[str, ...]:
        """A group is decided when the first of its consumers has its turn.

        Then all that came before it is pruned, and what the group itself removes is not yet:
        nothing that the consumers' kept inputs depend on comes later.
        """
        found = []
        for key, group in self.groups.items():
            layers = group.consumers or group.producers
            if min(layers, key=self.job.position) in names:
                found.append(key)
        return tuple(found)

    def needs(self, keys: Collection[str]) -> tuple[str, ...]:
        """Producers and consumers."""
        groups = [self.groups[key] for key in keys]
        return tuple(dict.fromkeys(n for g in groups for n in (*g.producers, *g.consumers)))

    def complete(self, name: str, decided: Collection[str]) -> bool:
        """True where all groups that the layer makes or reads are decided."""
        return all(
            key in decided
            for key, group in self.groups.items()
            if name in group.producers or name in group.consumers
        )

    def choose(
        self,
        key: str,
        layers: Layers,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        remembered: bool,
    ) -> Choice:
        """The classes of a group that stay."""
        memo, recipe = self.job.memo, self.recipe
        if memo is None or not remembered:
            return self._drawn(key, layers, scores, kept)
        parts = (recipe.granularity, recipe.score, recipe.selection, self.job.seed, key)
        known = (*parts, tuple(kept.tolist()))
        if known not in memo:
            memo[known] = self._drawn(key, layers, scores, kept)
        found = memo[known]
        assert isinstance(found, Choice)  # nodes have no joint methods
        return found

    def _drawn(self, key: str, layers: Layers, scores: Tensor, kept: Tensor) -> Choice:
        return drawn(self.recipe.selection, scores, kept, self.view(key, layers), self.job.seed)

    def masks(self, model: nn.Module, key: str, choice: Picked) -> dict[str, Bool[Tensor, "..."]]:
        """Rows of the producers, their biases and norms, and columns of the consumers."""
        group = self.groups[key]
        shapes = {}
        for name in dict.fromkeys(slot.parameter for slot in group.slots):
            tensor = self.parameters.get(name)
            if tensor is None and name not in self.buffers:  # a parameter by another of its names
                tensor = _at(model, name)
            if isinstance(tensor, nn.Parameter):
                shapes[name] = tuple(tensor.shape)
        return parameter_masks(group, choice.mask.flatten().cpu(), shapes)

    def fit(self, layer: Layer, mask: Bool[Tensor, "out in"], choices: Choices) -> Fit:
        """New values of a consumer's kept columns; a producer's rows stay as they are."""
        mask = mask.to(layer.weight.device)
        reads = [key for key in choices if layer.name in self.groups[key].consumers]
        ridge: float | None = None
        said: Mapping[str, object] = {}
        within = None
        if reads and not self.recipe.compensation.idle:
            weight, bias, ridge, said = refitted(self.recipe.compensation, layer, mask)
        else:
            weight, bias, within = with_zeros(layer.weight, mask), layer.bias, mask
        scale = None
        if not self.recipe.compensation.refits:
            scale = self._column_scale(layer, reads, choices)
        if scale is not None:
            weight, within = weight * scale.to(weight), None
        return Fit(
            mask=mask,
            weight=weight,
            bias=bias,
            scale=scale,
            ridge=ridge,
            notes=said,
            within=within,
        )

    def _column_scale(
        self, layer: Layer, reads: Sequence[str], choices: Choices
    ) -> Float[Tensor, "1 in"] | None:
        """Factors of a consumer's columns where a rescaled rule set them."""
        line = None
        for key in reads:
            choice = choices[key]
            if not isinstance(choice, Choice) or choice.scale is None:
                continue
            if line is None:
                line = torch.ones(1, layer.weight.shape[1])
            place = columns(self.groups[key], layer)
            factors = choice.scale.flatten().cpu().to(line)[:, None].expand(place.shape)
            line[0, place.flatten()] *= factors.flatten()
        return line

    def measured(
        self, layer: Layer, fit: Fit, masks: Mapping[str, Tensor]
    ) -> tuple[Fit, float | None]:
        """The values with the rows of all groups on them; kept outputs alone count as error."""
        bias, path = fit.bias, self.job.weights[layer.name].bias_path
        if bias is not None and path is not None and path in masks:
            bias = bias.masked_fill(~masks[path].to(bias.device), 0.0)
        weight = fit.weight
        if fit.within is not fit.mask:  # as where an earlier step's masks are in it too
            weight = torch.where(fit.mask, fit.weight, 0.0)
        if layer.gram is None:
            return replace(fit, weight=weight, bias=bias), None
        error = output_error(layer, weight, bias, marked_rows(fit.mask))
        return replace(fit, weight=weight, bias=bias), error

    def classes(self, choices: Choices) -> dict[str, Bool[Tensor, " classes"]]:
        """The kept classes by group."""
        return {key: choice.mask.flatten().cpu() for key, choice in choices.items()}


def _at(model: nn.Module, name: str) -> Any:
    """What a model has under a name of its state."""
    owner, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(owner), leaf, None)
