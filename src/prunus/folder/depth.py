"""Whole blocks taken out of a folder: what each does to the stream is seen as it goes by."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.calibration.batches import to_device
from prunus.counting import count_of
from prunus.engine.block_effects import output_gap, token_counts
from prunus.engine.edges import drawn
from prunus.files import write_text
from prunus.folder.bare import bare_model
from prunus.folder.finish import block_name
from prunus.folder.hidden import Stream, write_stream
from prunus.folder.journal import Journal
from prunus.folder.loop import Walk
from prunus.folder.needs import Needs
from prunus.folder.order import selected
from prunus.folder.result import BlockResult, LayerAccount
from prunus.folder.skeleton import Skeleton
from prunus.folder.tensors import write_tensors
from prunus.folder.widths import merged_config
from prunus.host import few_leftovers, return_memory
from prunus.nodes import BlockView
from prunus.noise import passed
from prunus.progress import progress_bar
from prunus.rng import generator_for
from prunus.surgery.stacks import renumber
from prunus.weights import weights_of

__all__ = ["chosen_blocks", "count_left", "still_known", "write_blocks", "write_depth"]


def count_left(density: float, blocks: int) -> int:
    """How many of the blocks stay.

    Raises:
        ValueError: all of them stay.
    """
    left = max(1, count_of(density, blocks))
    if left == blocks:
        raise ValueError(
            f"A density of {density} leaves all {blocks} blocks. One less is "
            f"{(blocks - 1) / blocks:.4g}."
        )
    return left


def _layers(skeleton: Skeleton) -> list[dict[str, int]]:
    """{layer: its weights} of each block."""
    starts = [f"{skeleton.block_name(index)}." for index in range(skeleton.blocks)]
    found: list[dict[str, int]] = [{} for _ in starts]
    for name, weight in weights_of(skeleton.model).items():
        for own, start in zip(found, starts, strict=True):
            if name.startswith(start):
                own[name] = weight.matrix().numel()
    return found


def still_known(
    walk: Walk, known: Sequence[BlockResult], journal: Journal
) -> Sequence[BlockResult]:
    """The accounts of a run under way; none where it was killed when its streams were gone."""
    if not known or walk.streams.path(len(known)).is_file():
        return known
    journal.again()
    return ()


def chosen_blocks(
    walk: Walk,
    known: Sequence[BlockResult],
    journal: Journal,
    density: float,
    needs: Needs,
    progress: bool | None,
) -> tuple[list[BlockResult], list[int]]:
    """Score the blocks by the recipe and say which stay.

    The dense network goes by once; each block's account, with how far it turns its stream, is in
    the journal, so that a killed run goes on there. Scores that compare outputs run the blocks
    again from the streams that were kept, for every set that they try.

    Returns:
        the accounts of all blocks, and the places of those that stay, in order.
    """
    skeleton, recipe = walk.skeleton, walk.order.recipe
    seen = list(known)
    words = f"reading blocks for {walk.order.name}"
    with few_leftovers(), progress_bar(f"{words} ({needs.short()})", skeleton.blocks,
                                       progress=progress) as bar:  # fmt: skip
        bar(len(seen))
        for index in range(len(seen), skeleton.blocks):
            seen.append(_passed(walk, index))
            journal.done(seen[-1])
            return_memory()
            bar(1)
        layers = _layers(skeleton)
        places = [i for i, own in enumerate(layers) if selected(tuple(own), walk.order)]
        left = count_left(density, len(places))
        names = tuple(skeleton.block_name(i) for i in places)
        view = BlockView(
            name=skeleton.home,
            blocks=names,
            turned=lambda: torch.tensor([seen[i].turned for i in places], dtype=torch.float64),
            gap=_Gaps(walk, places, progress),
            going=len(places) - left,
            generator=generator_for(walk.order.seed, skeleton.home),
        )
        scores = recipe.score.blocks(view)
        if scores is None or not bool(torch.isfinite(scores).all()):
            raise ValueError(f"{recipe.score!r} gave no finite numbers for the blocks.")
        kept = torch.tensor([left])
        mask = drawn(recipe.selection, scores[None], kept, view, walk.order.seed).mask[0]
    gone = {places[i] for i, stays in enumerate(mask.tolist()) if not stays}
    accounts = [
        _account(block, own, may=i in places, gone=i in gone)
        for i, (block, own) in enumerate(zip(seen, layers, strict=True))
    ]
    return accounts, [i for i in range(skeleton.blocks) if i not in gone]


def _account(
    block: BlockResult, layers: Mapping[str, int], *, may: bool, gone: bool
) -> BlockResult:
    """What became of a block's layers: all of each, or nothing."""
    if not may:
        return replace(block, not_pruned=dict.fromkeys(layers, "not selected"))
    own = {n: LayerAccount(kept=0 if gone else size, total=size) for n, size in layers.items()}
    return replace(block, layers=own)


def _passed(walk: Walk, index: int) -> BlockResult:
    """Run one dense block over the stream, and write what is behind it."""
    begun, device = time.perf_counter(), walk.order.device
    stream = walk.streams.into(index)
    turned, tokens = 0.0, 0.0
    with walk.skeleton.filled(index, device) as net, torch.no_grad():

        def behind(i: int) -> Tensor:
            nonlocal turned, tokens
            given = to_device(stream[i], device)
            hidden, mask = _parts(given)
            after: Tensor = passed(net, partial(net, hidden, mask), i)
            turn = 1 - torch.cosine_similarity(hidden.double(), after.double(), dim=-1)
            counts = token_counts(mask, turn)
            turned += float((turn * counts).sum())
            tokens += float(counts.sum())
            return after

        walk.streams.behind(index, behind)
    return BlockResult(layers={}, turned=turned / tokens, seconds=time.perf_counter() - begun)


def _parts(given: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(given, Tensor):
        return given, None
    return given["hidden_states"], given["attention_mask"]


class _Gaps:
    """Mean gaps of the logits without some blocks, from the stream before the first of them."""

    def __init__(self, walk: Walk, places: Sequence[int], progress: bool | None) -> None:
        self._walk, self._places, self._progress = walk, places, progress

    def __call__(self, gone: Sequence[int], kind: str) -> float:
        walk, out = self._walk, {self._places[i] for i in gone}
        other = walk.streams.into(min(out))
        rest = [i for i in range(min(out), walk.skeleton.blocks) if i not in out]
        with progress_bar(f"without {len(out)} blocks", len(rest), progress=self._progress) as bar:
            for turn, index in enumerate(rest):
                other = self._through(index, other, turn)
                bar(1)
        try:
            return self._gap(other, kind)
        finally:
            for turn in range(2):
                self._path(turn).unlink(missing_ok=True)

    def _path(self, turn: int) -> Path:
        return self._walk.streams.folder / f"without-{turn % 2}.safetensors"

    def _through(self, index: int, stream: Stream, turn: int) -> Stream:
        """The stream behind one more block, in the file of the stream before the last."""
        walk = self._walk
        with walk.skeleton.filled(index, walk.order.device) as net, torch.no_grad():

            def behind(i: int) -> Tensor:
                given = _parts(to_device(stream[i], walk.order.device))
                after: Tensor = passed(net, partial(net, *given), i)
                return after

            streams, dtype = walk.streams, walk.skeleton.dtype
            write_stream(self._path(turn), streams.batches, streams.width, dtype, behind)
        return Stream(self._path(turn), walk.streams.batches)

    def _gap(self, other: Stream, kind: str) -> float:
        skeleton, total, tokens = self._walk.skeleton, 0.0, 0.0
        dense = self._walk.streams.into(skeleton.blocks)
        for i, batch in enumerate(self._walk.streams.batches):
            both = [skeleton.logits(_parts(s[i])[0], batch.mask) for s in (dense, other)]
            gap = output_gap(both[0], both[1], kind)
            counts = token_counts(batch.mask, gap)
            total += float((gap * counts).sum())
            tokens += float(counts.sum())
        return total / tokens


def write_blocks(walk: Walk, stays: Sequence[int]) -> dict[str, str]:
    """Copy the blocks that stay under their new numbers; {name in the new folder: file}."""
    skeleton, table = walk.skeleton, dict[str, str]()
    for new, old in enumerate(stays):
        start = f"{skeleton.block_name(old)}."
        names = {}
        for name, key in skeleton.parameters(old).items():
            rest = name.removeprefix(start)
            front = key.removesuffix(rest).removesuffix(f"{old}.")
            names[key] = f"{front}{new}.{rest}"
        checkpoint = skeleton.checkpoint
        shapes = {names[key]: checkpoint.shape(key) for key in names}
        values = ((names[key], tensor) for key, tensor in checkpoint.read(names))
        write_tensors(walk.streams.folder / block_name(new), shapes, values)
        table |= dict.fromkeys(shapes, block_name(new))
    return table


def write_depth(
    skeleton: Skeleton, stays: Sequence[int], folder: Path, table: Mapping[str, str]
) -> None:
    """Let `config.json` say how many blocks there are, and what of it holds an entry for each.

    Raises:
        ValueError: a model that is built from it has other tensors than the folder.
    """
    config: Any = skeleton.model.config
    before = copy.deepcopy(config.to_dict())
    gone = [str(i) for i in range(skeleton.blocks) if i not in set(stays)]
    renumber(skeleton.model, skeleton.home, gone)
    made = bare_model(config, skeleton.dtype)
    inside = [n for n, _ in made.named_parameters() if n.startswith(f"{skeleton.home}.")]
    written = [n for n in table if "model-block-" in table[n]]
    if len(inside) != len(written):
        raise ValueError(
            f"The configuration of {type(made).__name__} without {len(gone)} blocks makes "
            f"{len(inside)} tensors of blocks, {len(written)} are left. Use prunus.prune on the "
            f"loaded model."
        )
    path = folder / "config.json"
    write_text(path, merged_config(path.read_text(encoding="utf-8"), before, config.to_dict()))
