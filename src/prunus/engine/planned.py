"""What a recipe makes of a network, by how much every layer keeps: for plans with a gap."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.budget import Budget, as_counts
from prunus.calibration import Calibration
from prunus.calibration.batches import Batches, Fingerprint, parts
from prunus.cost import Anatomy, node_cost
from prunus.engine.edges import edge_result
from prunus.engine.nodes import choose_classes, class_masks, node_results
from prunus.guarantee.criteria import sampled, size_of_all, split
from prunus.guarantee.family import EdgeFamily
from prunus.guarantee.plan import LARGEST, checked_limit
from prunus.layer import Layer
from prunus.modes import copied
from prunus.nodes import ClassView
from prunus.parts import NODES
from prunus.recipe import Recipe
from prunus.surgery.masked import apply_masks
from prunus.weights import weight_at

__all__ = ["NodeFamily", "check_plannable", "edge_family", "set_apart"]


def check_plannable(name: str, recipe: Recipe, budget: Budget | None, data: Any) -> None:
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


def set_apart(budget: Budget | None, data: Any) -> tuple[Any, list[Any] | None, Fingerprint | None]:
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


def edge_family(
    model: nn.Module,
    layers: Mapping[str, Layer],
    pools: Mapping[str, Float[Tensor, "pools units"]],
    recipe: Recipe,
    *,
    name: str,
    seed: int,
) -> EdgeFamily:
    """The networks of a recipe for single weights: its own masks, draws and compensation.

    Args:
        model: the dense network.
        layers: with the statistics that the recipe declares.
        pools: their scores.
        recipe: the method.
        name: of the recipe.
        seed: of the draws, as for the pruning that follows.
    """
    sizes = {key: [scores.shape[1]] * scores.shape[0] for key, scores in pools.items()}
    minimum = recipe.allocation.minimum
    known: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}

    def make(key: str, count: int) -> tuple[Tensor, Tensor | None]:
        if (key, count) not in known:
            kept = as_counts(key, count, sizes[key])
            result = edge_result(layers[key], pools[key], kept, recipe, seed=seed)
            known[key, count] = (result.weight, result.bias)
        return known[key, count]

    return EdgeFamily(
        model,
        {key: sum(own) for key, own in sizes.items()},
        make,
        method=f"the masks of {name}",
        smallest={key: sum(min(minimum, n) for n in own) for key, own in sizes.items()},
    )


class NodeFamily:
    """The networks of a recipe for nodes: {group: classes}."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        views: Sequence[ClassView],
        pools: Mapping[str, Float[Tensor, "pools units"]],
        recipe: Recipe,
        sizes: Anatomy,
        *,
        name: str,
        seed: int,
    ) -> None:
        """A family over copies of `model`.

        Args:
            model: the dense network.
            layers: producers and consumers, with the statistics that the recipe declares.
            views: the groups.
            pools: their scores.
            recipe: the method.
            sizes: of the network, for its cost.
            name: of the recipe.
            seed: of the draws, as for the pruning that follows.
        """
        self.sizes: Mapping[str, int] = {view.name: view.group.size for view in views}
        minimum = recipe.allocation.minimum
        self.smallest: Mapping[str, int] = {key: min(minimum, n) for key, n in self.sizes.items()}
        self.step: int = recipe.granularity.multiple_of
        self.method = f"the nodes of {name}"
        self._parts = (model, layers, views, pools, recipe, seed)
        self._anatomy = sizes
        self._choices: dict[tuple[str, int], Any] = {}

    def _choice(self, view: ClassView, count: int) -> Any:
        _, _, _, pools, recipe, seed = self._parts
        key = (view.name, count)
        if key not in self._choices:
            kept = torch.tensor([count])
            self._choices[key] = choose_classes(view, pools[view.name], kept, recipe, seed)
        return self._choices[key]

    def network(self, kept: Mapping[str, int]) -> nn.Module:
        """A copy with these counts of classes."""
        model, layers, views, _, recipe, _ = self._parts
        found = copied(model)
        some = [v for v in views if kept.get(v.name, v.group.size) < v.group.size]
        if not some:
            return found
        choices = {view.name: self._choice(view, kept[view.name]) for view in some}
        masks = class_masks(found, some, choices)
        for result in node_results(found, layers, some, choices, recipe, masks).values():
            weight_at(found, result.name).put(result.weight, result.bias)
        apply_masks(found, masks)
        return found

    def cost(self, kept: Mapping[str, int]) -> float:
        """Parameters of the compact network: every group shrinks those of the others too."""
        groups = [view.group for view in self._parts[2]]
        counts = {name: kept.get(name, size) for name, size in self.sizes.items()}
        return float(node_cost(self._anatomy, groups, counts).parameters)
