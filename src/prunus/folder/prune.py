"""`prune_folder`: a checkpoint folder pruned block by block, in the memory of one block."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.calibration.batches import Batches
from prunus.calibration.place import checked_device
from prunus.check import whole
from prunus.engine.target import target_of
from prunus.files import Growing, growing, write_bytes, write_text
from prunus.folder.account import ACCOUNT, read_account, write_account
from prunus.folder.blocks import Order, PrunedBlock, prune_block
from prunus.folder.checkpoint import INDEX, Checkpoint, open_checkpoint
from prunus.folder.fit import check_names, checked_recipe, needs_for
from prunus.folder.hidden import Batch, Stream, write_stream
from prunus.folder.journal import Journal
from prunus.folder.needs import Needs
from prunus.folder.ranks import Ranks
from prunus.folder.result import BlockResult, FolderResult
from prunus.folder.skeleton import BlockNet, Skeleton
from prunus.folder.tensors import write_tensors
from prunus.folder.widths import write_config
from prunus.host import return_memory
from prunus.parts import NODES
from prunus.presets import resolve
from prunus.progress import progress_bar
from prunus.recipe import Recipe
from prunus.tokens import text as text_of
from prunus.tokens import token_set

__all__ = ["prune_folder"]

COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".md")
LONGEST = {"cpu": 512}  # tokens of a calibration window where none is given; 2048 elsewhere
SCRATCH = "prunus-"
DENSE = "dense-"


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
    whose: Any = _one_of("inputs", inputs, ("pruned", "dense"))
    method = replace(method, inputs=whose)
    method = checked_recipe(name, method)
    blind = not method.statistics and not measure
    if blind:  # then no block's inputs matter
        method, inputs = replace(method, inputs="dense"), "dense"
    target = target_of(density, method)
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
    batches, notes = _batches(skeleton, blind, text, data, samples, length, batch, seed, place)
    final = Path(os.path.abspath(out))
    if final == Path(os.path.abspath(src)):
        raise ValueError(f"`out` must be another folder than `src`, got {out} for both.")
    order = Order(
        recipe=method,
        name=name,
        target=target,
        layers=None if layers is None else [layers] if isinstance(layers, str) else list(layers),
        exclude=[exclude] if isinstance(exclude, str) else list(exclude or ()),
        within=_one_of("within", within, ("block", "layers")) if inputs == "pruned" else "block",
        aim=_one_of("aim", aim, ("own", "dense")) if inputs == "pruned" else "own",
        alone=False,
        seed=seed,
        device=place,
        scratch=final,
        combine=ranks.combine,
        measure=measure,
    )
    order = check_names(skeleton, order)
    settings = _settings(order, checkpoint, batches, density, ranks.size)
    if ranks.same(final.exists()):
        return _finished(final, settings, resume=resume)
    order, needs = needs_for(skeleton, order, batches, memory, place)
    with ExitStack() as stack:
        journal: Journal | None = None
        if ranks.leads:
            work = stack.enter_context(growing(final))
            work.tidy(SCRATCH)
            journal = Journal(work.folder, settings, resume=resume)
            _room(work.folder, needs.disk)
        else:
            work = Growing(final)
        blocks = list(ranks.same([] if journal is None else journal.blocks))
        resumed = len(blocks)
        order = replace(order, scratch=work.folder)
        _go_through(
            skeleton, order, ranks.share(batches), work, blocks, journal, ranks, needs, progress
        )
        result = _result(order, blocks, batches, needs, final, resumed, notes)
        if ranks.leads:
            _write_rest(checkpoint, skeleton, work.folder)
            if method.units == NODES:
                write_config(skeleton, work.folder)
            write_account(work.folder, result, settings)
            work.forget("progress.json")
            work.finish()
        ranks.wait()
    return result


def _one_of(what: str, given: str, known: tuple[str, ...]) -> str:
    if given not in known:
        raise ValueError(f"`{what}` must be one of {', '.join(map(repr, known))}, got {given!r}.")
    return given


def _batches(
    skeleton: Skeleton,
    blind: bool,
    text: Any,
    data: Any,
    samples: int,
    length: int | None,
    batch: int,
    seed: int,
    place: torch.device,
) -> tuple[list[Batch], tuple[str, ...]]:
    """The calibration batches, and what the reader should know of them."""
    if text is not None and data is not None:
        raise ValueError("Give `text` or `data`, not both.")
    if blind:
        given = text is not None or data is not None
        return [], ("the recipe reads no inputs, so that the text was not run",) if given else ()
    if text is None and data is None:
        raise ValueError(
            "This recipe calibrates. Pass text=, the path of a text file, or data=, token ids."
        )
    config: Any = skeleton.model.config
    longest = getattr(config, "max_position_embeddings", None)
    if data is None:
        wide = length or min(longest or 2048, LONGEST.get(place.type, 2048))
        rows = text_of(
            text, _tokenizer(skeleton.checkpoint.folder), samples, wide, seed, batch=batch
        )
        found = [Batch(ids, None) for ids in rows]
        there = sum(len(ids) for ids in rows)
        notes = (
            (f"the text has {there} windows of {wide} tokens, fewer than samples={samples}",)
            if there < samples
            else ()
        )
    else:
        found, notes = [_batch_of(b) for b in Batches(data)], ()
    _check_ids(found, getattr(config, "vocab_size", None), longest)
    return found, notes


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError, TypeError, ImportError, AttributeError) as error:
        said = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(
            f"{folder} has no tokenizer that transformers loads ({said[0]}). Pass ids as data."
        ) from None


def _batch_of(given: Any) -> Batch:
    values = given if isinstance(given, Mapping) else {"input_ids": given}
    if isinstance(given, tuple | list):
        values = {"input_ids": given[0]}
    if "input_ids" not in values:
        raise ValueError(
            f"A batch of token ids must be a tensor or hold `input_ids`, got {sorted(values)}."
        )
    ids = torch.as_tensor(values["input_ids"])
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex():
        raise ValueError(
            f"Token ids must be whole numbers of shape (samples, positions), got {ids.dtype} of "
            f"shape {tuple(ids.shape)}."
        )
    mask = values.get("attention_mask")
    mask = None if mask is None else torch.as_tensor(mask).bool()
    if mask is not None and not bool(mask.any()):
        raise ValueError("A batch is all padding. Leave it out.")
    if mask is not None and bool(mask.all()):
        mask = None
    return Batch(ids.cpu().to(torch.int64), None if mask is None else mask.cpu().to(torch.int64))


def _check_ids(batches: Sequence[Batch], vocabulary: int | None, longest: int | None) -> None:
    for batch in batches:
        low, high = int(batch.ids.min()), int(batch.ids.max())
        if low < 0 or (vocabulary is not None and high >= vocabulary):
            raise ValueError(
                f"Token ids must lie in [0, {vocabulary}), the model's vocabulary, got {low} to "
                f"{high}. Use its own tokenizer."
            )
        if longest is not None and batch.ids.shape[1] > longest:
            raise ValueError(
                f"A window has {batch.ids.shape[1]} tokens, the model was made for at most "
                f"{longest}. Cut it, or set `length`."
            )


def _settings(
    order: Order, checkpoint: Checkpoint, batches: Sequence[Batch], density: Any, processes: int
) -> dict[str, Any]:
    """All that decides the result, in words and hashes."""
    from prunus.calibration.batches import Fingerprint

    fingerprint = Fingerprint()
    for batch in batches:
        fingerprint.add(
            batch.ids
            if batch.mask is None
            else {"input_ids": batch.ids, "attention_mask": batch.mask}
        )
    return {
        "source": checkpoint.fingerprint(),
        "recipe": repr(order.recipe),
        "density": repr(density),
        "text": fingerprint.value if batches else None,
        "within": order.within,
        "aim": order.aim,
        "layers": order.layers,
        "exclude": order.exclude,
        "measure": order.measure,
        "seed": order.seed,
        "processes": processes,
        "device": order.device.type,
        "prunus": prunus.__version__,
        "torch": torch.__version__,
    }


def _room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    there = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if free + there < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.3g} GB left, and {needed / 1e9:.3g} GB are needed for the "
            f"output and the hidden states. Free some, or name another folder."
        )


def _go_through(
    skeleton: Skeleton,
    order: Order,
    batches: Sequence[Batch],
    work: Growing,
    blocks: list[BlockResult],
    journal: Journal | None,
    ranks: Ranks,
    needs: Needs,
    progress: bool | None,
) -> None:
    """Prune the blocks that are not done, and add their accounts to `blocks`."""
    width = int(skeleton.calls_stream(1, 2).shape[-1])
    paired = order.aim == "dense" and bool(batches)
    words = f"pruning blocks by {order.name} ({needs.short()})"
    with progress_bar(words, skeleton.blocks, progress=progress) as advance:
        advance(len(blocks))
        for index in range(len(blocks), skeleton.blocks):
            stream = dense = None
            if batches:
                stream = _stream(skeleton, batches, work.folder, index, width, ranks, "")
                if paired:
                    dense = _stream(skeleton, batches, work.folder, index, width, ranks, DENSE)
            last = index + 1 == skeleton.blocks
            with ExitStack() as stack:
                net = stack.enter_context(skeleton.filled(index, order.device))
                begun = time.perf_counter()
                with ExitStack() as passes:
                    done = _pruned(net, order, stream, dense, skeleton, passes)
                    if batches and not last:
                        _go_on(skeleton, done, batches, work.folder, index + 1, width, ranks)
                if ranks.leads:
                    _write_block(skeleton, done.small(), index, work.folder)
                blocks.append(replace(done.account, seconds=time.perf_counter() - begun))
            ranks.wait()  # all streams are there
            if journal is not None:
                journal.done(blocks[-1])
            ranks.wait()  # and the journal says so
            del net, done, stream, dense
            return_memory()
            for kind in ("", DENSE):
                work.forget(ranks.stream_name(index, kind))
            advance(1)


def _pruned(
    net: BlockNet,
    order: Order,
    stream: Stream | None,
    dense: Stream | None,
    skeleton: Skeleton,
    stack: ExitStack,
) -> PrunedBlock:
    given: Any = stream if stream is not None else [skeleton.calls_stream(1, 2).to(order.device)]
    try:
        return prune_block(net, order, given, dense, stack)
    except ValueError as error:
        raise ValueError(f"Block {net.index} of {skeleton.home}: {error}") from error


def _go_on(
    skeleton: Skeleton,
    done: PrunedBlock,
    batches: Sequence[Batch],
    folder: Path,
    index: int,
    width: int,
    ranks: Ranks,
) -> None:
    """Write the stream behind a block, and the dense one where it goes along."""
    streams = [("", done.outputs), (DENSE, done.dense_outputs)]
    for kind, outputs in streams:
        if outputs is None:
            continue
        try:
            path = folder / ranks.stream_name(index, kind)
            write_stream(path, batches, width, skeleton.dtype, outputs)
        except ValueError as error:
            raise ValueError(f"Block {index - 1} {error}") from None


def _stream(
    skeleton: Skeleton,
    batches: Sequence[Batch],
    folder: Path,
    index: int,
    width: int,
    ranks: Ranks,
    kind: str,
) -> Stream:
    """The stream that goes into a block; the first is made of the embedding."""
    path = folder / ranks.stream_name(index, kind)
    if not path.is_file():
        if index:
            raise FileNotFoundError(
                f"{path} is missing, from which the next block goes on. Remove {folder} and "
                f"begin again."
            )

        def embedded(i: int) -> Tensor:
            return skeleton.embedded(batches[i].ids, batches[i].mask, torch.device("cpu"))

        try:
            write_stream(path, batches, width, skeleton.dtype, embedded)
        except ValueError as error:
            raise ValueError(f"The embedding {error}") from None
    return Stream(path, batches)


def _write_block(skeleton: Skeleton, net: nn.Module, index: int, folder: Path) -> None:
    state = net.state_dict()
    own = {key: state[name] for name, key in skeleton.parameters(index).items()}
    shapes = {key: (t.dtype, tuple(t.shape)) for key, t in own.items()}
    write_tensors(folder / _block_name(index), shapes, own.items())


def _block_name(index: int) -> str:
    return f"model-block-{index:05d}.safetensors"


def _write_rest(checkpoint: Checkpoint, skeleton: Skeleton, folder: Path) -> None:
    """Copy what lies in no block, and write the table of files; the model is whole then."""
    table: dict[str, str] = {}
    for index in range(skeleton.blocks):
        table |= dict.fromkeys(skeleton.parameters(index).values(), _block_name(index))
    rest = skeleton.rest
    for number, file in enumerate(checkpoint.files):
        own = [key for key in rest if checkpoint.tensors[key].file == file]
        if own:
            name = f"model-rest-{number:05d}.safetensors"
            shapes = {key: checkpoint.shape(key) for key in own}
            write_tensors(folder / name, shapes, checkpoint.read(own))
            table |= dict.fromkeys(own, name)
    size = sum(_bytes(folder / file) for file in set(table.values()))
    index_text = {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))}
    write_text(folder / INDEX, json.dumps(index_text, indent=2) + "\n")
    for path in sorted(checkpoint.folder.iterdir()):
        wanted = path.suffix in COPIED and path.name not in (INDEX, ACCOUNT, "pruned.json")
        if path.is_file() and wanted and not path.name.startswith("."):
            write_bytes(folder / path.name, path.read_bytes())


def _bytes(path: Path) -> int:
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def _result(
    order: Order,
    blocks: Sequence[BlockResult],
    batches: Sequence[Batch],
    needs: Needs,
    final: Path,
    resumed: int,
    notes: tuple[str, ...],
) -> FolderResult:
    said = dict.fromkeys([*notes, *(n for block in blocks for n in block.notes)])
    return FolderResult(
        folder=final,
        recipe=repr(order.recipe),
        name=order.name,
        seed=order.seed,
        layers={n: own for block in blocks for n, own in block.layers.items()},
        not_pruned={n: why for block in blocks for n, why in block.not_pruned.items()},
        tokens=sum(batch.tokens for batch in batches),
        seen=token_set(batch.ids for batch in batches),
        needs=needs,
        seconds=sum(block.seconds for block in blocks),
        resumed=resumed,
        notes=tuple(said),
    )


def _finished(final: Path, settings: Mapping[str, Any], *, resume: bool) -> FolderResult:
    """The account of a folder that this very pruning has made before."""
    path = final / ACCOUNT
    known = read_account(final) if resume and path.is_file() else None
    if known is None or known[1] != json.loads(json.dumps(settings)):
        raise FileExistsError(
            f"{final} exists already{'' if known is None else ', pruned with other settings'}. "
            f"Name another folder, or remove it."
        )
    return known[0]
