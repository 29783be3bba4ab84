"""What the caller asked for as a density, turned into the plan of one step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from prunus.allocation import CostOf, Pools
from prunus.allocation.rules import plan_of
from prunus.budget import (
    Budget,
    Density,
    Plan,
    as_counts,
    checked_density,
    count_of,
    densities_of,
    share,
)
from prunus.check import unknown
from prunus.parts import NODES
from prunus.recipe import Recipe

__all__ = ["Target", "target_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """One of the forms a density can take, checked."""

    budget: Budget | None = None
    by_name: Mapping[str, float] | None = None
    plan: Plan | None = None

    def plan_for(
        self, pools: Pools, cost: CostOf, recipe: Recipe, part: float, dense: Mapping[str, float]
    ) -> tuple[Plan, dict[str, Int[Tensor, " pools"]]]:
        """The plan of a step that goes the share `part` of the way, and its counts per pool.

        Args:
            pools: scores per pool by layer or group name.
            cost: the exact cost of a plan.
            recipe: whose allocation splits a budget.
            part: 1 for the last step of a schedule.
            dense: cost of the dense model by budget target, where iterative budgets start.
        """
        sizes = {name: [scores.shape[1]] * scores.shape[0] for name, scores in pools.items()}
        if recipe.granularity.fixed is not None:
            n, m = recipe.granularity.fixed
            kept = {name: as_counts(name, [n] * len(own), own) for name, own in sizes.items()}
            return plan_of(kept, cost, Budget(density=n / m)), kept
        if self.plan is not None:
            _known(self.plan.kept, pools, cost.members if cost.nodes else {})
            kept = {
                name: _on_the_way(
                    as_counts(name, self.plan.kept.get(name, sum(own)), own), own, part
                )
                for name, own in sizes.items()
            }
            return self.plan, kept
        if self.by_name is not None:
            densities = densities_of(
                self.by_name,
                pools,
                members=cost.members,
                refused=cost.refused,
                shared=cost.nodes,
            )
            minimum = recipe.allocation.minimum
            counts = {
                name: count_of(densities[name] ** part, sum(own)) for name, own in sizes.items()
            }
            kept = {
                name: as_counts(name, share(counts[name], own, minimum=minimum), own)
                for name, own in sizes.items()
            }
            total = sum(sum(own) for own in sizes.values())
            asked = sum(densities[name] * sum(own) for name, own in sizes.items()) / total
            wanted = None if cost.nodes else sum(counts.values())
            aside = () if recipe.allocation.equal_shares else (_set_aside(recipe),)
            risen = tuple(
                f"{name} keeps {int(kept[name].sum())} of {sum(sizes[name])}, where a density of "
                f"{densities[name]:g} would be fewer than every pool keeps at least"
                for name in kept
                if int(kept[name].sum()) > counts[name]
            )
            notes = (*aside, *risen)
            plan = plan_of(kept, cost, Budget(density=min(1.0, asked)), notes, asked=wanted)
            return plan, kept
        assert self.budget is not None  # `target_of` sets exactly one
        budget = self.budget.step(part, dense.get(self.budget.target))
        plan = recipe.allocation(pools, cost, budget)
        if not isinstance(plan, Plan):
            raise TypeError(
                f"The allocation must answer with a prunus.Plan, got {type(plan).__name__}. "
                f"prunus.allocation.rules.plan_of makes one of counts."
            )
        kept = {name: as_counts(name, plan.kept[name], own) for name, own in sizes.items()}
        return plan, kept


def target_of(density: Density, recipe: Recipe) -> Target:
    """The checked form of what stands in the place of a density.

    Raises:
        ValueError: outside (0, 1], or missing; for N:M, other than N/M.
        TypeError: none of a number, a mapping, a Budget or a Plan.
    """
    if recipe.granularity.fixed is not None:
        fixed = recipe.granularity.fixed[0] / recipe.granularity.fixed[1]
        if density not in (None, fixed, Budget(density=fixed)):
            raise ValueError(
                f"{recipe.granularity!r} fixes the density to {fixed:g}, got {density!r}. "
                f"Pass {fixed:g} or None."
            )
        return Target()
    if density is None:
        raise ValueError("`density` is missing. Give a number in (0, 1], a Budget or a Plan.")
    if isinstance(density, Plan):
        return Target(plan=density)
    if isinstance(density, Budget):
        if density.target == "latency" and recipe.units != NODES:
            raise ValueError(
                f"A latency budget needs a recipe for nodes, got {recipe.granularity!r}: zeros "
                f"inside a dense weight save no time. Use Node(), or a budget of density."
            )
        if density.coder == "compressed" and recipe.units == NODES:
            raise ValueError(
                f"A budget of compressed bytes counts single weights, got {recipe.granularity!r}. "
                f"Give a budget of bytes without `coder`."
            )
        return Target(budget=density)
    if isinstance(density, Mapping):
        if not density:
            raise ValueError("`density` must not be empty, got {}. Give {glob: density}.")
        for glob in density:
            if not isinstance(glob, str):
                raise ValueError(f"`density` must map names or globs, such as '0', got {glob!r}.")
        return Target(by_name=dict(density))
    if isinstance(density, int | float) and not isinstance(density, bool):
        return Target(budget=Budget(density=checked_density(density)))
    raise TypeError(
        f"`density` must be a number, {{glob: number}}, a Budget or a Plan, got "
        f"{type(density).__name__}."
    )


def _on_the_way(
    counts: Int[Tensor, " pools"], sizes: Sequence[int], part: float
) -> Int[Tensor, " pools"]:
    """The counts after a share `part` of an iterative schedule, by geometric interpolation."""
    if part >= 1:
        return counts
    full = torch.tensor(sizes, dtype=torch.float64)
    between = full ** (1 - part) * counts.to(torch.float64).clamp_min(1) ** part
    return torch.maximum(between.round().to(torch.int64), counts)


def _set_aside(recipe: Recipe) -> str:
    return (
        f"densities were given layer by layer, so that {recipe.allocation!r} shared nothing out "
        f"between layers"
    )


def _known(names: Mapping[str, object], pools: Pools, members: Mapping[str, Sequence[str]]) -> None:
    for name in names:
        if name in pools:
            continue
        homes = [repr(group) for group, layers in members.items() if name in layers]
        if homes:
            raise ValueError(
                f"The plan names layer {name!r}, which shares its channels with others: they are "
                f"counted by group. Give the count of {' and '.join(homes)}."
            )
        raise unknown("layer in the plan", name, pools)
