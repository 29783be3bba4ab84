"""`prune_folder`: a checkpoint folder pruned block by block, in the memory of one block."""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prunus.calibration.place import checked_device
from prunus.check import globs, whole
from prunus.engine.target import target_of
from prunus.files import Growing, growing
from prunus.folder.account import write_account
from prunus.folder.apart import go_apart
from prunus.folder.checkpoint import open_checkpoint
from prunus.folder.depth import chosen_blocks, still_known, write_blocks, write_depth
from prunus.folder.engines import check_engine
from prunus.folder.finish import block_table, result_of, write_rest
from prunus.folder.fit import check_names, checked_recipe, needs_for
from prunus.folder.journal import Journal
from prunus.folder.loop import Walk, go_through
from prunus.folder.order import Order
from prunus.folder.others import Others, suffix_of
from prunus.folder.ranks import Ranks
from prunus.folder.result import FolderResult
from prunus.folder.settings import finished, settings_of
from prunus.folder.skeleton import Skeleton
from prunus.folder.streams import Streams
from prunus.folder.widths import write_config
from prunus.folder.windows import calibration_batches
from prunus.folder.workers import Workers, shares_of
from prunus.parts import BLOCKS, NODES
from prunus.presets import resolve
from prunus.recipe import Recipe

__all__ = ["prune_folder"]

SCRATCH = "prunus-"


def prune_folder(
    src: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: str | Recipe,
    density: Any = None,
    *,
    text: str | os.PathLike[str] | Iterable[str] | None = None,
    data: Any = None,
    samples: int = 128,
    length: int | None = None,
    inputs: str = "pruned",
    device: str | torch.device | None = None,
    memory: int | None = None,
    resume: bool = True,
    within: str = "block",
    aim: str = "own",
    group: Any = None,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    batch: int = 1,
    measure: bool = False,
    seed: int = 0,
    executor: Any = None,
    progress: bool | None = None,
) -> FolderResult:
    """Prune a causal language model in a folder, with the memory of one block at a time.

    The folder is in Hugging Face's layout, and so is the answer, which `from_pretrained` loads.
    Each block is read, calibrated on the stream of hidden states that the blocks before it give,
    pruned, and written; the stream lies in files. What lies in no block (embeddings, the last norm
    and the head) stays as it is.

    The work goes on in `OUT.part`, which takes the name `out` when it is whole. A run that was
    stopped, however, is resumed by calling again with the same arguments: the result is the same,
    bit for bit.

    Args:
        src: the folder: `config.json` and safetensors files.
        out: must not exist.
        recipe: a name in `prunus.recipes`, or a `Recipe` that prunes once.
        density: kept / total of each layer in (0, 1], {glob: density} or a `Plan`; None for N:M.
        text: calibration text, the path of a UTF-8 file or strings; the tokenizer of `src` reads
            it. Windows are drawn as `prunus.text` says.
        data: token ids in place of text: a tensor (samples, positions), mappings with `input_ids`
            and `attention_mask`, or an iterable of such batches.
        samples: windows of the text that are drawn.
        length: tokens in a window; the model's longest, at most 512 on a CPU and 2048 elsewhere.
        inputs: "pruned": each block is calibrated on the stream behind pruned blocks, as SparseGPT
            and Wanda were published; "dense": on the dense network's.
        device: where blocks are computed; the CPU where None.
        memory: bytes that may be used beside Python and its libraries. Where the formula of
            `prunus.folder.Needs` exceeds it, the layers of a block are calibrated one input after
            another; where that is too much too, nothing is begun.
        resume: go on with an unfinished run; False refuses one.
        within: "block": all statistics of a block are those of its dense weights, as published;
            "layers": each layer sees those before it pruned, and least squares aims at the dense
            block's outputs.
        aim: of least squares: each layer's "own" outputs on its inputs, or those of the "dense"
            network, for which its stream goes along (twice the forward passes and files).
        group: a process group of torch.distributed, each of whose processes calls with the same
            arguments: batches are split over them, sums are added, and all of them prune alike.
        layers: names or globs of layers in the blocks to prune; all where None.
        exclude: names or globs to leave alone.
        batch: windows that run together.
        measure: collect Gram matrices for the layers' errors where the recipe needs none.
        seed: of all random draws.
        executor: of `prunus.bench.make_executor`; its workers see the same folders. Blocks that do
            not wait for one another, with inputs="dense" or recipes that read no inputs, are
            handed out: the files are the same, byte for byte, and one stream for every block lies
            on disk meanwhile. With inputs="pruned" the batches are split, as by `group`: this
            process runs the first share, workers the others, and sums are added.
        progress: show a bar; None shows it on a terminal after two seconds.

    Returns:
        a `FolderResult`.

    Raises:
        ValueError: an unfit recipe, density, folder or text; a run with other settings under way.
        FileNotFoundError: files are missing.
        FileExistsError: `out` exists and is not this very pruning.
        MemoryError: the formula exceeds `memory`; the terms are named.
        OSError: the disk has not the room that is needed.
    """
    name, method = resolve(recipe)
    deep = method.units == BLOCKS
    whose: Any = _one_of("inputs", "dense" if deep else inputs, ("pruned", "dense"))
    method = replace(method, inputs=whose)
    method = checked_recipe(name, method)
    blind = not method.statistics and not measure and not deep
    if blind:  # then no block's inputs matter
        method, inputs = replace(method, inputs="dense"), "dense"
    apart = executor is not None and inputs == "dense"
    if executor is not None:
        check_engine(executor, apart=apart, whole=deep, alone=group is None)
    target = target_of(density, method)
    if deep and (group is not None or target.budget is None or target.budget.density is None):
        raise ValueError(
            f"Whole blocks are taken out by one density, in one process, got {density!r}"
            f"{'' if group is None else ' and a group'}."
        )
    if target.budget is not None and target.budget.density is None:
        raise ValueError(
            f"A folder is pruned block by block, so that a budget of {target.budget.target} has no "
            f"whole to be shared. Give a density, {{glob: density}} or a Plan."
        )
    whole("seed", seed, low=0)
    whole("batch", batch, low=1)
    whole("samples", samples, low=1)
    place = checked_device(device) if device is not None else torch.device("cpu")
    ranks = Ranks(group)
    checkpoint = open_checkpoint(Path(src))
    skeleton = Skeleton(checkpoint)
    batches, notes = calibration_batches(
        skeleton,
        blind=blind,
        text=text,
        data=data,
        samples=samples,
        length=length,
        batch=batch,
        seed=seed,
        place=place,
    )
    final = Path(os.path.abspath(out))
    if final == Path(os.path.abspath(src)):
        raise ValueError(f"`out` must be another folder than `src`, got {out} for both.")
    order = Order(
        recipe=method,
        name=name,
        target=target,
        layers=globs("layers", layers),
        exclude=globs("exclude", exclude) or (),
        within=_one_of("within", within, ("block", "layers")) if inputs == "pruned" else "block",
        aim=_one_of("aim", aim, ("own", "dense")) if inputs == "pruned" else "own",
        alone=False,
        seed=seed,
        device=place,
        scratch=final,
        measure=measure,
    )
    order = check_names(skeleton, order)
    size = ranks.size if executor is None or apart else shares_of(executor, batches)
    settings = settings_of(order, checkpoint, batches, density, size)
    if ranks.same(final.exists()):
        return finished(final, settings, resume=resume)
    order, needs = needs_for(
        skeleton,
        order,
        batches,
        memory,
        place,
        every_stream=apart or deep,
        workers=size - ranks.size,
    )
    with ExitStack() as stack:
        journal: Journal | None = None
        if ranks.rank == 0:
            work = stack.enter_context(growing(final))
            work.tidy(SCRATCH)
            journal = Journal(work.folder, settings, resume=resume)
            _room(work.folder, needs.disk)
        else:
            work = Growing(final)
        known = list(ranks.same([] if journal is None else journal.blocks))
        order = replace(order, scratch=work.folder)
        others: Others = ranks
        also: tuple[str, ...] = ()
        if size > ranks.size:
            stack.callback(executor.cancel)
            others = workers = Workers(
                executor, size, source=checkpoint.folder, order=order, batches=batches
            )
            also = workers.suffixes
        walk = Walk(
            skeleton=skeleton,
            order=order,
            streams=Streams(
                skeleton=skeleton,
                batches=others.share(batches),
                folder=work.folder,
                suffix=suffix_of(others.rank, others.size),
                also=also,
            ),
            others=others,
        )
        table = block_table(skeleton)
        stays = list(range(skeleton.blocks))
        if deep and journal is not None:
            known = list(still_known(walk, known, journal))
            blocks, stays = chosen_blocks(walk, known, journal, density, needs, progress)
            table = write_blocks(walk, stays)
        elif apart and journal is not None:
            blocks = go_apart(walk, journal, executor, needs, progress)
            walk.streams.forget_all()
        else:
            blocks = go_through(walk, known, journal, needs, progress)
        result = result_of(order, blocks, batches, needs, final, len(known), notes)
        gone = [skeleton.block_name(i) for i in range(skeleton.blocks) if i not in stays]
        result = replace(result, gone=tuple(gone))
        if ranks.rank == 0:
            write_rest(checkpoint, skeleton, work.folder, table)
            if method.units == NODES:
                write_config(skeleton, work.folder)
            elif deep:
                write_depth(skeleton, stays, work.folder, table)
                walk.streams.forget_all()
            write_account(work.folder, result, settings)
            work.forget("progress.json")
            work.finish()
        ranks.wait()
    return result


def _one_of(what: str, given: str, known: tuple[str, ...]) -> str:
    if given not in known:
        raise ValueError(f"`{what}` must be one of {', '.join(map(repr, known))}, got {given!r}.")
    return given


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    there = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if free + there < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.3g} GB left, and {needed / 1e9:.3g} GB are needed for the "
            f"output and the hidden states. Free some, or name another folder."
        )
