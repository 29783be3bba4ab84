"""Residual blocks, or halves of them, as the engine's steps see them."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prunus.calibration.batches import parts, to_device
from prunus.engine.block_cost import BlockCost
from prunus.engine.block_effects import Gaps, turned
from prunus.engine.groups import sample_of
from prunus.engine.job import Job, State
from prunus.engine.settled import Settled
from prunus.engine.unit import Kept
from prunus.engine.whole import WholeUnit, batches_of, settled_without
from prunus.hints import Batch
from prunus.modes import copied
from prunus.nodes import BlockView
from prunus.recipe import Recipe
from prunus.rng import generator_for
from prunus.surgery.depth import Skippable, gone_parts, skippable, without, zeros_of

__all__ = ["block_unit", "settled_blocks"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Chains:
    """The blocks of some chains; a pool's key is its chain's name.

    Attributes:
        job: what is pruned.
        recipe: the method of this step.
        work: the network as it is.
        chains: what may go, by chain.
        refused: {block: reason} of the others.
        going: how many blocks of each chain go at most.
    """

    job: Job
    recipe: Recipe
    work: nn.Module
    chains: Mapping[str, tuple[Skippable, ...]]
    refused: Mapping[str, str]
    going: Mapping[str, int]
    what: str = "blocks"

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """One pool for each chain."""
        return {key: (1, len(blocks)) for key, blocks in self.chains.items()}

    @property
    def homes(self) -> tuple[str, ...]:
        """The blocks, or the modules of their halves."""
        blocks = [part for own in self.chains.values() for part in own]
        return tuple(home for part in blocks for home in part.owners or (part.name,))

    @property
    def cost(self) -> BlockCost:
        """The cost of any plan."""
        return BlockCost(self.job.sizes, self.chains, self.refused)

    def view(self, key: str) -> BlockView:
        """A chain as scores see it."""
        blocks = self.chains[key]
        return BlockView(
            name=key,
            blocks=tuple(part.name for part in blocks),
            turned=partial(self._turned, blocks),
            gap=Gaps(self.work, blocks, self.batches, self.job.progress),
            going=self.going[key],
            generator=generator_for(self.job.seed, key),
        )

    def _turned(self, blocks: Sequence[Skippable]) -> Float[Tensor, " blocks"]:
        return turned(self.work, blocks, self.batches())

    def batches(self) -> Iterator[Batch]:
        """The data in parts of bounded size, on the network's device."""
        for batch in self.job.batches or ():
            for part in parts(batch):
                yield to_device(part, self.job.device)

    def scores(self, key: str) -> Tensor | None:
        """The recipe's number of every block."""
        return self.recipe.score.blocks(self.view(key))

    def gone(self, key: str, masks: Mapping[str, Tensor]) -> Bool[Tensor, " parts"] | None:
        """The blocks that masks have emptied."""
        if not masks:
            return None
        empty = {name for name, mask in masks.items() if not bool(mask.any())}
        return torch.tensor([empty >= set(part.writers) for part in self.chains[key]])

    def masks(
        self, model: nn.Module, key: str, stays: Bool[Tensor, " parts"]
    ) -> dict[str, Bool[Tensor, "..."]]:
        """All or nothing of what each block writes to the stream."""
        found: dict[str, Tensor] = {}
        for part, kept in zip(self.chains[key], stays.tolist(), strict=True):
            found |= {name: mask | kept for name, mask in zeros_of(model, [part]).items()}
        return found

    def level(self, kept: Kept) -> Kept:
        """As they are."""
        return kept

    def changed(self, keys: Collection[str]) -> tuple[str, ...]:
        """What writes to these chains' streams."""
        return tuple(w for key in keys for part in self.chains[key] for w in part.writers)


def block_unit(job: Job, recipe: Recipe, state: State, work: nn.Module) -> WholeUnit:
    """The blocks that may go.

    Raises:
        ValueError: no data, no blocks, or none that can go; or a target that knows layers alone.
    """
    batches_of(job, state, "blocks")
    small = sample_of(job.dense, to_device(job.example, job.device))
    found, refused = skippable(job.dense, small, recipe.granularity.part)
    chosen = [p for p in found if any(n.startswith(f"{p.name}.") for n in job.names)]
    refused |= {p.name: "not selected" for p in found if p not in chosen}
    chains: dict[str, tuple[Skippable, ...]] = {}
    for block in chosen:
        chains[block.chain] = (*chains.get(block.chain, ()), block)
    if not chains:
        raise ValueError(
            "None of the selected layers lies in a block that can go. Check `layers` and `exclude`."
        )
    budget = state.target.budget
    least = budget.value if budget is not None and budget.target == "density" else 0.0
    going = {n: math.ceil(len(own) * (1 - least)) for n, own in chains.items()}
    parts = Chains(job=job, recipe=recipe, work=work, chains=chains, refused=refused, going=going)
    return WholeUnit(job=job, recipe=recipe, work=work, parts=parts, before=state.masks)


def settled_blocks(job: Job, state: State, work: nn.Module) -> Settled:
    """The cost of the network without its blocks, counted on it."""
    batch = to_device(job.example, job.device)
    part = job.recipe.granularity.part
    gone = gone_parts(work, state.masks, part, batch)
    small = without(work, gone, part, batch) if gone else copied(work)
    every = BlockCost(job.sizes, {}, {}).entries(skippable(job.dense, batch, part)[0])
    return Settled(settled_without(job, small, batch, sum(every.values())))
