"""What a recipe makes of a network, by how much every layer keeps: for plans with a gap."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunus.allocation import Pools
from prunus.budget import Budget, as_counts
from prunus.calibration import Calibration
from prunus.calibration.batches import Batches, Fingerprint, parts, to_device
from prunus.engine.edges import edge_result
from prunus.engine.nodes import NodeUnit
from prunus.engine.unit import Layers, Picked, Unit
from prunus.engine.write import write
from prunus.guarantee.criteria import sampled, size_of_all, split
from prunus.guarantee.family import EdgeFamily, Family
from prunus.guarantee.plan import LARGEST, checked_limit
from prunus.hints import Batch, Data
from prunus.modes import copied
from prunus.parts import NODES
from prunus.recipe import Recipe
from prunus.surgery.compact import compact_groups
from prunus.surgery.cut import cuts_inexactly

__all__ = ["check_plannable", "edge_family", "node_family", "set_apart"]


def check_plannable(name: str, recipe: Recipe, budget: Budget | None, data: Data | None) -> None:
    """Raise a ValueError where a gap budget, or `Planned()`, cannot have its error curves."""
    allocation = recipe.allocation
    if budget is not None and budget.gap is not None:
        what = "A gap budget"
        checked_limit(budget.gap, budget.kind, budget.delta)
    elif budget is not None and allocation.measures_curves:
        what = "Planned()"
        if recipe.units == NODES:
            raise ValueError(
                "Planned() shares single weights among layers, got nodes. Use Uniform() or "
                "Global()."
            )
    else:
        return
    if data is None or isinstance(data, Calibration):
        raise ValueError(f"{what} needs the inputs themselves. Pass batches as data.")
    if not recipe.schedule.single:
        raise ValueError(f"{what} is met in one step, not by {recipe.schedule!r}.")
    if recipe.granularity.fixed is not None:
        raise ValueError(
            f"{what} chooses counts, and {recipe.granularity!r} fixes them all. Use Edge() or "
            f"EdgePerRow()."
        )
    if recipe.inputs == "pruned":
        raise ValueError(
            f"{what} needs the error of each layer alone, and with inputs='pruned' it depends on "
            f"the layers before it. Use inputs='dense' in {name!r}."
        )


def set_apart(
    budget: Budget | None, data: Data | None
) -> tuple[Data | None, list[Batch] | None, Fingerprint | None]:
    """The data that calibrate and plan, those that verify, and the fingerprint of all.

    Only a gap budget of kind "changed" sets samples apart, half of the first 8192: what verifies
    a plan must have had no part in scores, masks or compensation.
    """
    if budget is None or budget.gap is None or budget.kind != "changed":
        return data, None, None
    batches = Batches(data)
    fingerprint = None
    if not batches.one_shot:
        found = Fingerprint()
        for batch in batches:
            for part in parts(batch):
                found.add(part)
        fingerprint = found
    read = sampled(batches, LARGEST)
    calibrating, verifying = split(read, size_of_all(read) // 2)
    if not calibrating:
        raise ValueError("kind='changed' needs at least three samples, to plan and to verify.")
    return calibrating, verifying, fingerprint


def node_family(unit: Unit, layers: Layers, pools: Pools) -> Family:
    """The networks that a recipe for nodes makes of the dense one, for any counts."""
    assert isinstance(unit, NodeUnit)  # the row of its kind made it
    return _NodeFamily(unit, layers, pools)


def edge_family(unit: Unit, layers: Layers, pools: Pools) -> Family:
    """The networks that a recipe for single weights makes of the dense one, for any counts.

    Args:
        unit: what is kept or removed as one.
        layers: with the statistics that the recipe declares.
        pools: their scores.
    """
    job = unit.job
    sizes = {key: [scores.shape[1]] * scores.shape[0] for key, scores in pools.items()}
    minimum = job.recipe.allocation.minimum
    known: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}

    def make(key: str, count: int) -> tuple[Tensor, Tensor | None]:
        if (key, count) not in known:
            kept = as_counts(key, count, sizes[key])
            result = edge_result(layers[key], pools[key], kept, unit.recipe, seed=job.seed)
            known[key, count] = (result.weight, result.bias)
        return known[key, count]

    # Single weights of one layer leave the others alone, so a network changes layer by layer.
    return EdgeFamily(
        job.dense,
        {key: sum(own) for key, own in sizes.items()},
        make,
        method=f"the masks of {job.name}",
        smallest={key: sum(min(minimum, n) for n in own) for key, own in sizes.items()},
    )


class _NodeFamily:
    """The networks of a recipe for nodes: {group: classes}."""

    def __init__(self, unit: NodeUnit, layers: Layers, pools: Pools) -> None:
        """A family over copies of the dense network.

        Args:
            unit: the groups, and the method.
            layers: producers and consumers, with the statistics that the recipe declares.
            pools: their scores.
        """
        self.sizes: Mapping[str, int] = {key: group.size for key, group in unit.groups.items()}
        minimum = unit.recipe.allocation.minimum
        self.smallest: Mapping[str, int] = {key: min(minimum, n) for key, n in self.sizes.items()}
        self.step: int = unit.recipe.granularity.multiple_of
        self.method = f"the nodes of {unit.job.name}"
        groups = tuple(unit.groups.values())
        self._inexact = cuts_inexactly(unit.job.dense, groups, unit.recipe.granularity)
        if self._inexact:
            self.method = f"the compact networks of {unit.job.name}"
        # All plans are made from the same statistics.
        self._unit, self._layers, self._pools = replace(unit, found={}), layers, pools
        self._choices: dict[tuple[str, int], Picked] = {}

    def _choice(self, key: str, count: int) -> Picked:
        known = (key, count)
        if known not in self._choices:
            kept = torch.tensor([count])
            self._choices[known] = self._unit.choose(
                key, self._layers, self._pools[key], kept, remembered=False
            )
        return self._choices[known]

    def network(self, kept: Mapping[str, int]) -> nn.Module:
        """A copy with these counts of classes.

        Where norms take other statistics in the compact network, that one: it is what the budget
        is about, and the masked one is another.
        """
        found = copied(self._unit.job.dense)
        some = [key for key, size in self.sizes.items() if kept.get(key, size) < size]
        choices = {key: self._choice(key, kept[key]) for key in some}
        write(found, self._unit, self._layers, choices)
        if not self._inexact:
            return found
        job = self._unit.job
        batch = to_device(job.example, job.device)
        groups = tuple(self._unit.groups.values())
        return compact_groups(found, groups, batch, inexact=True, pinning=True).model

    def cost(self, kept: Mapping[str, int]) -> float:
        """Parameters of the compact network: every group shrinks those of the others too."""
        counts = {name: kept.get(name, size) for name, size in self.sizes.items()}
        return float(self._unit.costs.prices(counts).parameters)
