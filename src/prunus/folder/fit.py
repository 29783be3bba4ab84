"""Whether a recipe can go block by block, and whether what it needs is there."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from prunus.budget import densities_of
from prunus.calibration.statistics import resolved
from prunus.check import matches, unknown
from prunus.folder.hidden import Batch
from prunus.folder.needs import Needs, needs_of
from prunus.folder.order import Order, selected
from prunus.folder.skeleton import Skeleton
from prunus.joint import is_network
from prunus.parts import BLOCKS, EXPERTS, NODES
from prunus.recipe import Recipe
from prunus.weights import weights_of

__all__ = ["check_names", "checked_recipe", "needs_for"]


def checked_recipe(name: str, recipe: Recipe) -> Recipe:
    """The recipe, or a ValueError where it must see the whole network."""
    why = _reason_against(recipe)
    if why is not None:
        raise ValueError(
            f"Recipe {name!r} cannot go block by block: {why}. Use prunus.prune on the loaded "
            f"model, or another recipe."
        )
    return recipe


def _reason_against(recipe: Recipe) -> str | None:
    whole = [s.name for s in resolved(recipe.statistics).values() if not s.reads.sequential]
    if whole:
        return f"it reads {', '.join(whole)} of the whole network"
    if is_network(recipe.selection):
        return "it searches over all layers at once"
    if recipe.allocation.reads_scores and recipe.granularity.fixed is None:
        return f"{recipe.allocation!r} compares the scores of all layers"
    if recipe.schedule.rounds != 1 or recipe.schedule.trains:
        return f"its schedule {recipe.schedule!r} prunes in several steps"
    if recipe.basis.needs_batches:
        return f"{recipe.basis!r} changes all layers at once"
    if recipe.units == EXPERTS:
        return "the folder's configuration counts experts, which only the loaded model's code knows"
    if recipe.units == BLOCKS and recipe.granularity.part != "block":
        part = recipe.granularity.part
        return f"a folder's configuration cannot say that the {part} of a block is missing"
    return None


def check_names(skeleton: Skeleton, order: Order) -> Order:
    """The order with a density for every layer, where globs give them: blocks know their own alone.

    Raises:
        ValueError: a name or glob matches no layer of any block, or no layer is left.
    """
    start = f"{skeleton.home}."
    names = [name for name in weights_of(skeleton.model) if name.startswith(start)]
    for glob in [*(order.layers or ()), *(order.exclude or ())]:
        if not any(matches(name, glob) for name in names):
            raise unknown("layer or glob", glob, names)
    chosen = selected(names, order)
    if not chosen:
        raise ValueError("No layer is left to prune. Check `layers` and `exclude`.")
    if order.target.by_name is not None and order.recipe.units != NODES:
        named = densities_of(order.target.by_name, chosen)
        return replace(order, target=replace(order.target, by_name=named))
    return order


def needs_for(
    skeleton: Skeleton,
    order: Order,
    batches: Sequence[Batch],
    memory: int | None,
    device: torch.device,
    *,
    every_stream: bool = False,
    workers: int = 0,
) -> tuple[Order, Needs]:
    """What is needed, and the order in which it fits `memory`.

    Args:
        skeleton: the model.
        order: how its blocks are pruned.
        batches: that calibrate.
        memory: bytes that may be used, or None.
        device: where blocks are.
        every_stream: the streams into all blocks lie on disk at once.
        workers: that write their sums, and read the block, beside this process.

    Raises:
        MemoryError: it does not fit in any order; the terms of the formula are named.
    """
    inputs = skeleton.shared_inputs(0)
    shapes = {
        name: tuple(weight.matrix().shape)
        for name, weight in weights_of(skeleton.model).items()
        if any(name in group for group in inputs)
    }
    names = resolved(order.recipe.statistics)
    gram = "gram" in names or order.measure
    stored = skeleton.checkpoint.tensors
    sizes = [
        sum(stored[key].bytes_in(skeleton.dtype) for key in skeleton.parameters(i).values())
        for i in range(skeleton.blocks)
    ]

    def needs(one: Order) -> Needs:
        return needs_of(
            shapes,
            inputs=inputs,
            block_bytes=max(sizes),
            blocks=skeleton.blocks,
            width=int(skeleton.calls_stream(1, 2).shape[-1]),
            itemsize=skeleton.dtype.itemsize,
            tokens=sum(b.ids.numel() for b in batches),
            batch_tokens=max((b.ids.numel() for b in batches), default=0),
            gram=gram and bool(batches),
            factor=order.recipe.refits and gram,
            pairs=one.paired,
            streams=skeleton.blocks + 3 if every_stream else 4 if one.aim == "dense" else 2,
            output_bytes=sum(s.bytes for s in stored.values()),
            alone=one.alone or one.within == "layers",
            device=device.type,
            workers=workers,
        )

    found = needs(order)
    if memory is None or found.total <= memory:
        return order, found
    alone = replace(order, alone=True)
    found = needs(alone)
    if found.total <= memory:
        return alone, found
    raise MemoryError(
        f"Pruning this folder {found.summary()}, more than memory={memory / 1e9:.3g} GB allows, "
        f"also with the layers of a block one input after another. Allow more, use shorter "
        f"batches, or a recipe that needs less (`wanda` takes the Gram matrix's diagonal only)."
    )
