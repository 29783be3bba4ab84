"""The kinds of units that a step knows; a row for each."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from prunus.allocation import Pools
from prunus.engine.blocks import block_unit, settled_blocks
from prunus.engine.edges import EdgeUnit
from prunus.engine.experts import expert_unit, settled_experts
from prunus.engine.job import Job, State
from prunus.engine.node_unit import node_unit
from prunus.engine.planned import edge_family, node_family
from prunus.engine.settled import Settled, settled
from prunus.engine.unit import Layers, Unit
from prunus.guarantee.family import Family
from prunus.parts import BLOCKS, EDGES, EXPERTS, NODES
from prunus.recipe import Recipe

__all__ = ["KINDS", "Kind", "kind_of", "unit_of"]


@dataclass(frozen=True)
class Kind:
    """What the steps ask of a kind of units.

    Attributes:
        unit: (job, recipe of the step, state, network as it is) -> what is kept or removed as one.
        settled: (job, state after the last step, pruned network) -> its cost, and what is to be
            said and remembered of it.
        family: (unit, layers, scores) -> the networks that the recipe makes for any counts; None
            where gap budgets do not know the kind.
    """

    unit: Callable[[Job, Recipe, State, nn.Module], Unit]
    settled: Callable[[Job, State, nn.Module], Settled]
    family: Callable[[Unit, Layers, Pools], Family] | None = None


def _edges(job: Job, recipe: Recipe, state: State, work: nn.Module) -> Unit:
    unit = EdgeUnit(job=job, recipe=recipe, layers=job.names, before={})
    return unit.after(work, state.masks, state.classes)


KINDS: dict[str, Kind] = {
    EDGES: Kind(_edges, settled, edge_family),
    NODES: Kind(node_unit, settled, node_family),
    BLOCKS: Kind(block_unit, settled_blocks),
    EXPERTS: Kind(expert_unit, settled_experts),
}


def kind_of(recipe: Recipe) -> Kind:
    """The row of a recipe's units; those of a user's own granularity are single weights."""
    return KINDS.get(recipe.units, KINDS[EDGES])


def unit_of(job: Job, recipe: Recipe, state: State, work: nn.Module) -> Unit:
    """What is kept or removed as one."""
    return kind_of(recipe).unit(job, recipe, state, work)
