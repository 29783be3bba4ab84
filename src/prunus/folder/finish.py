"""A folder is finished: what lies in no block is copied, then come the table and the account."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from prunus.files import write_bytes, write_text
from prunus.folder.account import ACCOUNT
from prunus.folder.checkpoint import INDEX, Checkpoint
from prunus.folder.hidden import Batch
from prunus.folder.needs import Needs
from prunus.folder.order import Order
from prunus.folder.result import BlockResult, FolderResult
from prunus.folder.skeleton import Skeleton
from prunus.folder.tensors import write_tensors
from prunus.tokens import token_set

__all__ = ["block_name", "block_table", "result_of", "write_rest"]

COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".md")


def block_name(index: int) -> str:
    """The file of a block."""
    return f"model-block-{index:05d}.safetensors"


def block_table(skeleton: Skeleton) -> dict[str, str]:
    """{tensor: file} of all blocks."""
    table: dict[str, str] = {}
    for index in range(skeleton.blocks):
        table |= dict.fromkeys(skeleton.parameters(index).values(), block_name(index))
    return table


def write_rest(
    checkpoint: Checkpoint, skeleton: Skeleton, folder: Path, blocks: Mapping[str, str]
) -> None:
    """Copy what lies in no block, and write the table of files; the model is whole then.

    Args:
        checkpoint: where it lies.
        skeleton: the model.
        folder: where to.
        blocks: {tensor: file} of the blocks there.
    """
    table = dict(blocks)
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


def result_of(
    order: Order,
    blocks: Sequence[BlockResult],
    batches: Sequence[Batch],
    needs: Needs,
    final: Path,
    resumed: int,
    notes: tuple[str, ...],
) -> FolderResult:
    """The account of all blocks together."""
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
