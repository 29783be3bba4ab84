"""Pruned networks in folders: safetensors and JSON, never pickle."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from prunus.calibration.saved import apart
from prunus.files import read_folder, write_folder
from prunus.hints import Batch
from prunus.modes import built, copied
from prunus.reading import check, read_tensors, stored_json
from prunus.result.account import (
    Account,
    LayerFacts,
    check_missing,
    checked_account,
    compact_state,
    state_and_masks,
)
from prunus.result.example import example_of, form_of
from prunus.result.packing import bits, packed_tensors
from prunus.result.value import LayerResult, Pruned
from prunus.rows import state_sum
from prunus.surgery.attributes import bare_widths
from prunus.surgery.depth import take_out
from prunus.surgery.following import told
from prunus.surgery.removals import mark, removal_of
from prunus.surgery.resize import resize
from prunus.weights import weight_at

__all__ = ["load", "save", "weights_digest"]

FORMAT = 2  # 1 stored every mask
ACCOUNT = "pruned.json"
FORM = re.compile(r"(weights|compact)-[0-9a-f]{12}\.safetensors")


def save(pruned: Pruned, folder: str | os.PathLike[str], *, example: Batch = None) -> Path:
    """Write a pruned network to `folder`; see `Pruned.save`."""
    packed: dict[str, Tensor] = {}
    state = pruned.model.state_dict()
    for key, value in state.items():
        packed.update(packed_tensors(key, value.detach().cpu()))
    # A mask is stored where it is not simply where the parameter has values.
    extra = {
        f"mask|{name}": bits(mask.cpu())
        for name, mask in pruned.masks.items()
        if name not in state or not torch.equal(mask.to(state[name].device), state[name] != 0)
    }
    facts: dict[str, Any] = {
        "format": FORMAT,
        "kind": "pruned",
        "recipe": repr(pruned.recipe),
        "units": pruned.recipe.units,
        "recipe_digest": pruned.recipe.digest,
        "name": pruned.name,
        "seed": pruned.seed,
        "plan": {
            "kept": {
                n: list(k) if not isinstance(k, int) else k for n, k in pruned.plan.kept.items()
            },
            "density": pruned.plan.density,
            "limit": pruned.plan.limit,
            "kind": pruned.plan.kind,
            "value": pruned.plan.value,
            "feasible": pruned.plan.feasible,
            "notes": list(pruned.plan.notes),
        },
        "layers": {
            n: {"error": r.error, "power": r.power, "ridge": r.ridge, "notes": dict(r.notes)}
            for n, r in pruned.layers.items()
        },
        "not_pruned": dict(pruned.not_pruned),
        "cost_before": asdict(pruned.cost_before),
        "cost_after": asdict(pruned.cost_after),
        "data_fingerprint": pruned.data_fingerprint,
        "metrics": dict(pruned.metrics),
        "notes": list(pruned.notes),
        "dense": _dense_digest(pruned),
        "shapes": {k: list(v.shape) for k, v in pruned.model.state_dict().items()},
        "dtypes": {k: str(v.dtype) for k, v in pruned.model.state_dict().items()},
        "mask_shapes": {k: list(v.shape) for k, v in pruned.masks.items()},
        "example": form_of(pruned.example if example is None else example),
    }
    parts = {"weights": save_tensors(apart({**packed, **extra}))}
    if example is not None:
        small = pruned.compact(example)
        facts["compact_widths"] = bare_widths(small)
        removal = removal_of(pruned.recipe.granularity)
        facts["compact_missing"] = (
            {}
            if removal is None
            else removal.missing(pruned.model, pruned.masks, pruned.recipe.granularity, example)
        )
        same = pruned.model
        if facts["compact_missing"]:
            same = copied(pruned.model)
            take_out(same, facts["compact_missing"])
        facts["compact_numbers"] = told(same, small)
        smaller = {k: v.detach().cpu() for k, v in small.state_dict().items()}
        parts["compact"] = save_tensors(apart(smaller))
    used = {"data": pruned.data_rows, "plan": pruned.plan.rows}
    # In the account, so that the bytes of the tensors' files are those of the networks.
    facts["rows"] = {n: known.to_text() for n, known in used.items() if known is not None}
    return write_folder(folder, ACCOUNT, facts, parts, form=FORM)


def load(
    folder: str | os.PathLike[str], model: nn.Module | Callable[[], nn.Module] | None = None
) -> Pruned:
    """Read a pruned network that `Pruned.save` wrote; nothing in the folder is executed.

    The form of the example is stored, not its samples: `.compact()` traces and compares on random
    numbers of that form where it is not given another.

    Args:
        folder: the folder.
        model: the dense model, or a function that builds it. Its weights are not changed; where
            they are the dense ones of the pruning, the result can certify. The pruned network has
            the dtypes that it was saved with, whatever those of this model.

    Raises:
        FileNotFoundError: no such folder, or a file is missing.
        ValueError: a file is truncated, foreign or newer, or the model does not fit; or no model.
    """
    source = Path(folder)
    path = source / ACCOUNT
    raw, files = read_folder(source, ACCOUNT, lambda: stored_json(path, "pruned", FORMAT))
    if model is None:
        raise ValueError(
            f"{source} holds weights and masks, but no code. Pass model=, a module or a function "
            f"that builds one, of the same architecture."
        )
    dense = built(model)
    facts = checked_account(raw, dense, path)
    check("weights" in files, path, "files", "names no weights.")
    tensors = read_tensors(files["weights"], source, "weights")
    state, masks = state_and_masks(facts, tensors, dense, source)
    pruned = copied(dense)
    _fit(pruned, state, source)
    mark(pruned, facts.recipe.granularity, masks)
    is_dense = facts.dense is not None and weights_digest(dense) == facts.dense
    result = Pruned(
        model=pruned,
        layers={},
        not_pruned=facts.not_pruned,
        plan=facts.counted(),
        recipe=facts.recipe,
        name=facts.name,
        seed=facts.seed,
        cost_before=facts.cost_before,
        cost_after=facts.cost_after,
        data_fingerprint=facts.data_fingerprint,
        data_rows=facts.rows.get("data"),
        metrics=facts.metrics,
        notes=tuple(facts.notes),
        masks=masks,
        dense=dense if is_dense else None,
        dense_state=state_sum(dense) if is_dense else None,
        example=_example(facts, path),
        stored_compact=_compact(facts, files, dense, source),
    )
    return replace(result, layers=_layers(pruned, masks, facts.layers))


def _compact(
    facts: Account, files: Mapping[str, bytes], dense: nn.Module, source: Path
) -> nn.Module | None:
    """The compact network, where it was stored."""
    if "compact" not in files:
        return None
    tensors = read_tensors(files["compact"], source, "compact")
    whole = copied(dense)
    if facts.compact_missing:
        check_missing(facts, dense, source)
        take_out(whole, facts.compact_missing)
    widths = compact_state(facts, tensors, whole, source)
    try:
        return resize(whole, tensors, widths, facts.compact_numbers)
    except (RuntimeError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{source}: the compact network has widths that do not go together ({error}). Save "
            f"the network again."
        ) from None


def _example(facts: Account, path: Path) -> Any:
    """An input of the stored form; older folders hold none."""
    try:
        return example_of(facts.example)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None


def weights_digest(model: nn.Module) -> str:
    """A hash of every tensor of the model's state."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _layers(
    model: nn.Module, masks: Mapping[str, Tensor], facts: Mapping[str, LayerFacts]
) -> dict[str, LayerResult]:
    found = {}
    for name, entry in facts.items():
        weight = weight_at(model, name)
        layer = weight.layer()
        kept = weight.mask(masks)
        if kept is None:
            kept = torch.ones_like(layer.weight, dtype=torch.bool)
        found[name] = LayerResult(
            name=name,
            mask=kept,
            weight=layer.weight,
            bias=layer.bias,
            error=entry.error,
            power=entry.power,
            ridge=entry.ridge,
            notes=entry.notes,
        )
    return found


def _dense_digest(pruned: Pruned) -> str | None:
    """Of the dense network, where it still is the one that was pruned."""
    dense = pruned.dense
    if dense is None or pruned.dense_state not in (None, state_sum(dense)):
        return None
    return weights_digest(dense)


def _fit(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        # Loading into another dtype would round the weights in silence: the saved one comes back.
        if key in state and value.dtype != state[key].dtype:
            value.data = value.data.to(state[key].dtype)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"The model does not fit the network saved in {source}: {lines[-1].strip()} "
            f"Build the architecture that was pruned."
        ) from None
