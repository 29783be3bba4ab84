"""Which weights stay after one change of the masks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.budget import Budget, Plan
from prunus.courses import Course
from prunus.engine.job import Job
from prunus.engine.statistics import bare_layers
from prunus.engine.step import levelled
from prunus.engine.target import Target
from prunus.engine.unit import Unit
from prunus.engine.write import merged
from prunus.selection import Choice
from prunus.weights import weight_at

__all__ = ["Chooser", "Chosen", "everything"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen:
    """What stays.

    Attributes:
        masks: True where an entry is kept, for every parameter that can lose some.
        classes: the kept channel classes by group; none for single weights.
        plan: the counts.
    """

    masks: Mapping[str, Tensor]
    classes: Mapping[str, Bool[Tensor, " classes"]]
    plan: Plan


@dataclass(frozen=True, eq=False, kw_only=True)
class Chooser:
    """Masks by a recipe, from the weights as they are.

    Attributes:
        job: what is pruned.
        unit: single weights, or channel classes.
        target: what is asked for at the end.
        course: how the density gets there.
    """

    job: Job
    unit: Unit
    target: Target
    course: Course

    def choose(
        self,
        model: nn.Module,
        share: float,
        before: Chosen | None,
        gathered: Mapping[str, Mapping[str, Tensor]],
    ) -> Chosen:
        """The masks at the share `share` of the training.

        Args:
            model: with the weights that compete.
            share: of the training that is done; 1 for what is asked for at the end.
            before: what stays gone; None where everything competes.
            gathered: what the score reads of the steps so far, by kind and parameter.

        Raises:
            ValueError: weights or scores that are NaN; the layer is named.
        """
        unit: Unit = self.unit
        if before is not None:
            unit = unit.after(model, before.masks, before.classes)
        layers = bare_layers(model, unit.layers)
        for kind in self.job.recipe.score.gathers:
            layers = {
                name: replace(layer, statistics={kind: _matrix(model, name, gathered[kind])})
                for name, layer in layers.items()
            }
        pools = unit.pools(layers)
        target, part = self._at(share, {key: s.numel() for key, s in pools.items()})
        plan, counts = target.plan_for(pools, unit.cost(layers), self.job.recipe, part, {})
        plan, kept = levelled(unit, plan, counts)
        choices = {}
        for key in pools:
            choice = unit.choose(key, layers, pools[key], kept[key], remembered=False)
            if isinstance(choice, Choice) and choice.scale is not None:
                raise ValueError(
                    f"{self.job.recipe.selection!r} scales the weights that it keeps, which a "
                    f"training undoes. Take it without scaling."
                )
            choices[key] = choice
        masks = merged({}, *(unit.masks(model, key, choice) for key, choice in choices.items()))
        return Chosen(masks=masks, classes=unit.classes(choices), plan=plan)

    def _at(self, share: float, sizes: Mapping[str, int]) -> tuple[Target, float]:
        """The target at a share of the training, and the part of the way to it (for a plan)."""
        target, course = self.target, self.course
        if share >= 1:
            return target, 1.0
        if target.by_name is not None:
            now = {glob: course.density(share, d) for glob, d in target.by_name.items()}
            return Target(by_name=now), 1.0
        if target.budget is not None:
            density = course.density(share, target.budget.value)
            return Target(budget=Budget(density=min(1.0, density))), 1.0
        if target.plan is None:  # the granularity fixes the counts
            return target, 1.0
        total = sum(sizes.values())
        counts = {key: target.plan.kept.get(key, size) for key, size in sizes.items()}
        kept = sum(k if isinstance(k, int) else sum(k) for k in counts.values())
        final = max(1, kept) / total
        if final >= 1:
            return target, 1.0
        return target, math.log(course.density(share, final)) / math.log(final)


def everything(model: nn.Module, unit: Unit) -> Chosen:
    """The masks that keep everything."""
    blank = unit.blank(bare_layers(model, unit.layers))
    choices = {
        key: Choice(mask=torch.ones(pools.shape, dtype=torch.bool)) for key, pools in blank.items()
    }
    masks = merged({}, *(unit.masks(model, key, choice) for key, choice in choices.items()))
    counts = {key: pools.numel() for key, pools in blank.items()}
    plan = Plan(kept=counts, density=1.0, limit=1.0, value=1.0)
    return Chosen(masks=masks, classes=unit.classes(choices), plan=plan)


def _matrix(model: nn.Module, name: str, values: Mapping[str, Tensor]) -> Tensor:
    weight = weight_at(model, name)
    return weight.matrix(values[weight.path]).to(torch.float64)
