"""Experts of mixture layers as the engine's steps see them."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prunus.calibration.batches import Batches, to_device
from prunus.cost import Anatomy, Cost, smaller_cost
from prunus.engine.job import Job, State
from prunus.engine.settled import Settled
from prunus.engine.unit import Kept
from prunus.engine.whole import WholeUnit, batches_of, settled_without
from prunus.nodes import ExpertView
from prunus.recipe import Recipe
from prunus.surgery.experts import ExpertScores, expert_gaps, expert_scores
from prunus.surgery.mixtures import (
    Mixture,
    kept_experts,
    mixtures,
    short_of,
    stacks_of,
    without_masked,
)

__all__ = ["expert_unit", "settled_experts"]

Stacks = Mapping[str, Sequence[str]]  # names of the parameters with an entry for each expert


@dataclass(frozen=True, eq=False)
class ExpertCost:
    """What a network costs with so many experts of each layer.

    A token is sent to as many experts as before, so that multiply-adds fall by the router's alone.

    Attributes:
        sizes: of the network.
        layers: of experts.
        stacks: their parameters.
        multiple_of: see `Experts`.
        refused: {layer: reason} of those that stay.
    """

    sizes: Anatomy
    layers: Mapping[str, Mixture]
    stacks: Stacks
    multiple_of: int = 1
    refused: Mapping[str, str] = field(default_factory=dict)
    nodes: bool = True
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]:
        """The modules of each layer of experts."""
        return {name: (m.experts, m.router) for name, m in self.layers.items()}

    def entries(self, names: Collection[str]) -> int:
        """Entries of parameters."""
        return sum(math.prod(self.sizes.shapes[self.sizes.home(n)]) for n in names)

    def level(self, kept: Kept) -> dict[str, Tensor]:
        """As many of every group of all layers of one size: a configuration has one number."""
        sizes = {name: (m.count, m.groups) for name, m in self.layers.items()}
        least: dict[tuple[int, int], int] = {}
        for name, counts in kept.items():
            least[sizes[name]] = min(least.get(sizes[name], sizes[name][0]), int(counts.min()))
        return {name: torch.full_like(k, least[sizes[name]]) for name, k in kept.items()}

    def __call__(self, kept: Kept) -> Cost:
        """The cost of a plan."""
        kept = self.level(kept)
        shapes, stay, saved = dict(self.sizes.shapes), 0, 0.0
        uses = {} if self.sizes.operations is None else self.sizes.operations.uses
        for name, mixture in self.layers.items():
            count = int(kept[name].sum())
            for stack in self.stacks[name]:
                home = self.sizes.home(stack)
                each = math.prod(shapes[home][1:])
                if stack.startswith(f"{mixture.router}."):
                    saved += (mixture.count - count) * each * uses.get(home, 0.0)
                shapes[home] = (count, *shapes[home][1:])
                stay += count * each
        whole = smaller_cost(self.sizes, self.sizes.shapes, ())
        every = self.entries([stack for own in self.stacks.values() for stack in own])
        return replace(
            smaller_cost(self.sizes, shapes, ()),
            density=stay / every if every else 1.0,
            macs=None if whole.macs is None else round(whole.macs - saved),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Layers:
    """The experts of all layers; a pool's key is its layer's name, a pool a group of experts.

    Attributes:
        job: what is pruned.
        recipe: the method of this step.
        work: the network as it is.
        layers: by name.
        batches: the data.
        refused: nothing.
    """

    job: Job
    recipe: Recipe
    work: nn.Module
    layers: Mapping[str, Mixture]
    batches: Batches
    refused: Mapping[str, str] = field(default_factory=dict)
    what: str = "experts"

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """A pool for each group of experts that the router chooses from."""
        return {n: (m.groups, m.count // m.groups) for n, m in self.layers.items()}

    @property
    def homes(self) -> tuple[str, ...]:
        """The experts and their routers."""
        return tuple(home for m in self.layers.values() for home in (m.experts, m.router))

    @property
    def cost(self) -> ExpertCost:
        """The cost of any plan."""
        stacks = {name: tuple(stacks_of(self.work, m)) for name, m in self.layers.items()}
        return ExpertCost(self.job.sizes, self.layers, stacks, self.recipe.granularity.multiple_of)

    @cached_property
    def _effects(self) -> dict[str, ExpertScores]:
        return expert_scores(self.work, self.batches, progress=self.job.progress)

    @cached_property
    def _gaps(self) -> dict[str, Float[Tensor, " experts"]]:
        return expert_gaps(self.work, self.batches, progress=self.job.progress)

    def view(self, key: str) -> ExpertView:
        """A layer as scores see it; one pass serves all layers."""
        return ExpertView(
            name=key,
            count=self.layers[key].count,
            effects=lambda: self._effects[key],
            gaps=lambda: self._gaps[key],
        )

    def scores(self, key: str) -> Tensor | None:
        """The recipe's number of every expert."""
        return self.recipe.score.experts(self.view(key))

    def gone(self, key: str, masks: Mapping[str, Tensor]) -> Bool[Tensor, " parts"] | None:
        """The experts that masks have emptied."""
        stays = kept_experts(self.work, masks).get(key)
        return None if stays is None else ~stays

    def masks(
        self, model: nn.Module, key: str, stays: Bool[Tensor, " parts"]
    ) -> dict[str, Bool[Tensor, "..."]]:
        """All or nothing of each expert's entries, and of its row of the router."""
        return {
            name: stays.view(-1, *[1] * (stack.ndim - 1)).expand(stack.shape).clone()
            for name, stack in stacks_of(model, self.layers[key]).items()
        }

    def level(self, kept: Kept) -> Kept:
        """As many of all.

        Raises:
            ValueError: fewer than a router needs; the layer is named.
        """
        found = self.cost.level(kept)
        for name, counts in found.items():
            error = short_of(name, self.layers[name], int(counts.sum()))
            if error is not None:
                raise error
        return found

    def changed(self, keys: Collection[str]) -> tuple[str, ...]:
        """The stacks and the routers' weights."""
        return tuple(n for key in keys for n in stacks_of(self.work, self.layers[key]))


def expert_unit(job: Job, recipe: Recipe, state: State, work: nn.Module) -> WholeUnit:
    """The experts of all layers.

    Raises:
        ValueError: no data, no experts, some layers alone; or a target that knows layers alone.
    """
    batches = batches_of(job, state, "experts")
    if job.asked:
        raise ValueError(
            f"{recipe.granularity!r} takes as many experts out of every layer of them, as "
            f"configurations have one number for all. Leave out `layers` and `exclude`."
        )
    parts = Layers(job=job, recipe=recipe, work=work, layers=mixtures(job.dense), batches=batches)
    return WholeUnit(job=job, recipe=recipe, work=work, parts=parts, before=state.masks)


def settled_experts(job: Job, state: State, work: nn.Module) -> Settled:
    """The cost of the network without its experts, counted on it."""
    batch = to_device(job.example, job.device)
    names = [n for m in mixtures(work).values() for n in stacks_of(work, m)]
    entries = ExpertCost(job.sizes, {}, {}).entries(names)
    small = without_masked(work, state.masks, batch)
    return Settled(settled_without(job, small, batch, entries))
