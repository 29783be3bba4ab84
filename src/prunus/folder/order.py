"""How the blocks of a folder are pruned, and which of their layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prunus.check import matches, meant
from prunus.engine.target import Target
from prunus.recipe import Recipe

__all__ = ["Order", "meant", "selected", "target_within"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Order:
    """How the blocks of a folder are pruned; one for all of them.

    Attributes:
        recipe: the method; its `inputs` say whose inputs calibrate.
        name: its name.
        target: what is asked for.
        layers: names or globs to prune, or None.
        exclude: names or globs to leave alone.
        within: "block", or "layers" where each layer sees those before it pruned.
        aim: "own" outputs of each layer on its inputs, or the "dense" network's.
        alone: statistics of one input at a time, a pass for each.
        seed: of all random draws.
        device: where blocks are.
        scratch: a folder for what a block keeps in between.
        measure: collect Gram matrices for layer errors alone.
    """

    recipe: Recipe
    name: str
    target: Target
    layers: Sequence[str] | None
    exclude: Sequence[str] | None
    within: str
    aim: str
    alone: bool
    seed: int
    device: torch.device
    scratch: Path
    measure: bool

    @property
    def paired(self) -> bool:
        """True where a dense block runs beside the one that is pruned."""
        return self.recipe.inputs == "pruned" and (self.within == "layers" or self.aim == "dense")


def target_within(target: Target, names: Sequence[str]) -> Target:
    """The part of what is asked for that these layers' pools have to do with."""
    if target.by_name is not None:
        own = {g: d for g, d in target.by_name.items() if any(matches(n, g) for n in names)}
        return Target(by_name=own or {names[0]: 1.0})
    if target.plan is not None:
        kept = {n: k for n, k in target.plan.kept.items() if n in names}
        return Target(plan=replace(target.plan, kept=kept))
    return target


def selected(names: Sequence[str], order: Order) -> list[str]:
    """Those of the layers that are to be pruned."""
    chosen = names if order.layers is None else [n for n in names if meant(n, order.layers)]
    return [n for n in chosen if not meant(n, order.exclude or ())]
