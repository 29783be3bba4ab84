"""What decides a pruned folder, in words and hashes: by it a run is resumed, or refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import prunus
from prunus.calibration.batches import Fingerprint
from prunus.folder.account import ACCOUNT, read_account
from prunus.folder.checkpoint import Checkpoint
from prunus.folder.hidden import Batch
from prunus.folder.order import Order
from prunus.folder.result import FolderResult

__all__ = ["finished", "settings_of"]


def settings_of(
    order: Order, checkpoint: Checkpoint, batches: Sequence[Batch], density: Any, processes: int
) -> dict[str, Any]:
    """All that decides the result, in words and hashes."""
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


def finished(final: Path, settings: Mapping[str, Any], *, resume: bool) -> FolderResult:
    """The account of a folder that this very pruning has made before."""
    path = final / ACCOUNT
    known = read_account(final) if resume and path.is_file() else None
    if known is None or known[1] != json.loads(json.dumps(settings)):
        raise FileExistsError(
            f"{final} exists already{'' if known is None else ', pruned with other settings'}. "
            f"Name another folder, or remove it."
        )
    return known[0]
