"""The windows of tokens that calibrate a folder: drawn from a text, or given, and checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunus.calibration.batches import Batches
from prunus.folder.hidden import Batch
from prunus.folder.skeleton import Skeleton
from prunus.tokens import text as text_of

__all__ = ["calibration_batches"]

LONGEST = {"cpu": 512}  # tokens of a calibration window where none is given; 2048 elsewhere


def calibration_batches(
    skeleton: Skeleton,
    *,
    blind: bool,
    text: Any,
    data: Any,
    samples: int,
    length: int | None,
    batch: int,
    seed: int,
    place: torch.device,
) -> tuple[list[Batch], tuple[str, ...]]:
    """The calibration batches, and what the reader should know of them.

    Args:
        skeleton: whose tokenizer, vocabulary and longest window count.
        blind: no input is read, so that there are none.
        text: of `prune_folder`, as are the others.
        data: token ids in place of text.
        samples: windows that are drawn.
        length: tokens in a window; None as `prune_folder` says.
        batch: windows that run together.
        seed: of the draw.
        place: where blocks are computed.

    Raises:
        ValueError: no text and no data, both, or ids that are none of this model's.
    """
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
    try:
        ids = torch.as_tensor(values["input_ids"])
    except (TypeError, ValueError, RuntimeError):
        kind = type(values["input_ids"]).__name__
        raise ValueError(
            f"Token ids must be whole numbers of shape (samples, positions), got {kind}."
        ) from None
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex() or not ids.shape[1]:
        raise ValueError(
            f"Token ids must be whole numbers of shape (samples, positions), got {ids.dtype} of "
            f"shape {tuple(ids.shape)}."
        )
    if ids.is_meta:
        raise ValueError("Token ids are on the meta device, which holds none. Make them on cpu.")
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
