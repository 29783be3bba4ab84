"""Pruned networks in folders: safetensors and JSON, never pickle."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from prunus.budget import Plan
from prunus.calibration.saved import apart, stored_json
from prunus.cost import Cost, Latency
from prunus.files import read_folder, write_folder
from prunus.modes import copied
from prunus.recipe import parse
from prunus.result.packing import bits, packed_tensors, parsed, unbits, unpacked
from prunus.result.value import LayerResult, Pruned
from prunus.rows import RowSet
from prunus.surgery.attributes import bare_widths
from prunus.surgery.resize import resize
from prunus.weights import weight_at

__all__ = ["load", "save", "weights_digest"]

FORMAT = 2  # 1 stored every mask
ACCOUNT = "pruned.json"


def save(pruned: Pruned, folder: str | os.PathLike[str], *, example: Any = None) -> Path:
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
            n: {"error": r.error, "ridge": r.ridge, "notes": dict(r.notes)}
            for n, r in pruned.layers.items()
        },
        "not_pruned": dict(pruned.not_pruned),
        "cost_before": asdict(pruned.cost_before),
        "cost_after": asdict(pruned.cost_after),
        "data_fingerprint": pruned.data_fingerprint,
        "metrics": dict(pruned.metrics),
        "notes": list(pruned.notes),
        "dense": None if pruned.dense is None else weights_digest(pruned.dense),
        "shapes": {k: list(v.shape) for k, v in pruned.model.state_dict().items()},
        "dtypes": {k: str(v.dtype) for k, v in pruned.model.state_dict().items()},
        "mask_shapes": {k: list(v.shape) for k, v in pruned.masks.items()},
    }
    parts = {"weights": save_tensors(apart({**packed, **extra}))}
    if example is not None:
        small = pruned.compact(example)
        facts["compact_widths"] = bare_widths(small)
        smaller = {k: v.detach().cpu() for k, v in small.state_dict().items()}
        parts["compact"] = save_tensors(apart(smaller))
    used = {"data": pruned.data_rows, "plan": pruned.plan.rows}
    # In the account, so that the bytes of the tensors' files are those of the networks.
    facts["rows"] = {n: known.to_text() for n, known in used.items() if known is not None}
    return write_folder(folder, ACCOUNT, facts, parts)


def load(
    folder: str | os.PathLike[str], model: nn.Module | Callable[[], nn.Module] | None = None
) -> Pruned:
    """Read a pruned network that `Pruned.save` wrote; nothing in the folder is executed.

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
    facts, files = read_folder(
        source, ACCOUNT, lambda: stored_json(source / ACCOUNT, "pruned", FORMAT)
    )
    if model is None:
        raise ValueError(
            f"{source} holds weights and masks, but no code. Pass model=, a module or a function "
            f"that builds one, of the same architecture."
        )
    dense = model if isinstance(model, nn.Module) else model()
    try:
        tensors = parsed(source, "weights", files["weights"])
        state = {key: unpacked(key, tensors, facts) for key in facts["shapes"]}
        masks = {
            name: unbits(tensors[f"mask|{name}"], shape)
            if f"mask|{name}" in tensors or facts["format"] == 1
            else state[name] != 0
            for name, shape in facts["mask_shapes"].items()
        }
        pruned = copied(dense)
        _fit(pruned, state, source)
        stored = None
        if "compact" in files:
            smaller = parsed(source, "compact", files["compact"])
            stored = resize(copied(dense), smaller, facts.get("compact_widths"))
        recipe = parse(facts["recipe"])
        kept = {
            n: k if isinstance(k, int) else tuple(k) for n, k in facts["plan"].pop("kept").items()
        }
        notes = tuple(facts["plan"].pop("notes"))
        known = facts.get("rows", {})  # folders of version 0.1 have none
        rows = {name: RowSet.from_text(text) for name, text in known.items()}
        is_dense = facts["dense"] is not None and weights_digest(dense) == facts["dense"]
        result = Pruned(
            model=pruned,
            layers={},
            not_pruned=facts["not_pruned"],
            plan=Plan(kept=kept, notes=notes, rows=rows.get("plan"), **facts["plan"]),
            recipe=recipe,
            name=facts["name"],
            seed=facts["seed"],
            cost_before=_cost(facts["cost_before"]),
            cost_after=_cost(facts["cost_after"]),
            data_fingerprint=facts["data_fingerprint"],
            data_rows=rows.get("data"),
            metrics=facts["metrics"],
            notes=tuple(facts["notes"]),
            masks=masks,
            dense=dense if is_dense else None,
            stored_compact=stored,
        )
        return replace(result, layers=_layers(pruned, masks, facts["layers"]))
    except KeyError as error:
        raise ValueError(f"{source} is no whole pruned network: {error} is missing.") from None


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
    model: nn.Module, masks: Mapping[str, Tensor], facts: Mapping[str, Any]
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
            error=entry["error"],
            ridge=entry["ridge"],
            notes=entry["notes"],
        )
    return found


def _cost(facts: dict[str, Any]) -> Cost:
    latency = facts.pop("latency")
    return Cost(**facts, latency=None if latency is None else Latency(**latency))


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
