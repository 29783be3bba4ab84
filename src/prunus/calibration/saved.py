"""Calibrations as folders: safetensors and JSON, never pickle; those of version 0.1 load."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from prunus.calibration.doubted import StoredFacts, checked_layer, checked_sums
from prunus.calibration.statistics import STATISTICS, Statistic, resolved
from prunus.calibration.sums import Sums
from prunus.check import brief
from prunus.files import named_parts, read_folder, write_folder
from prunus.layer import Layer
from prunus.reading import Fault, check, read_tensors, stored_json, validated
from prunus.rows import RowSet

__all__ = ["Stored", "apart", "load_sums", "save_sums"]

ROWS = "||rows"  # no layer has such a name
ACCOUNT = "calibration.json"
# 1: version 0.1, one count per layer and no statistics of channel classes; 2: one fixed file
FORMAT = 3
OLD_FILE = "statistics.safetensors"
FORM = re.compile(r"statistics(-[0-9a-f]{12})?\.safetensors")


@dataclass(frozen=True, eq=False, kw_only=True)
class Stored:
    """What a folder holds of a calibration.

    Attributes:
        layers: without statistics.
        sums: of every layer.
        groups: sums of the groups of channel classes.
        statistics: by name.
        fingerprint: hash of the data.
        samples: number of samples seen.
        rows: which samples; None where a folder of an older version does not say.
        refused: {name: reason} of modules that are no layers.
        unseen: {name: reason} of layers that lack a statistic.
    """

    layers: Mapping[str, Layer]
    sums: Mapping[str, Sums]
    groups: Mapping[str, Sums]
    statistics: Mapping[str, Statistic]
    fingerprint: str
    samples: int
    rows: RowSet | None
    refused: Mapping[str, str]
    unseen: Mapping[str, str] = field(default_factory=dict)


def save_sums(folder: str | os.PathLike[str], stored: Stored) -> Path:
    """Write sums and the layers' weights to `folder`."""
    tensors: dict[str, Tensor] = {}
    for name, layer in stored.layers.items():
        tensors[f"{name}|weight"] = layer.weight.contiguous()
        if layer.bias is not None:
            tensors[f"{name}|bias"] = layer.bias.contiguous()
        for key, value in stored.sums[name].totals.items():
            tensors[f"{name}|{key}"] = value.contiguous()
    for name, sums in stored.groups.items():
        tensors |= {f"|{name}|{key}": value for key, value in sums.totals.items()}
    if stored.rows is not None:
        tensors[ROWS] = stored.rows.hashes
    facts = {
        "format": FORMAT,
        "kind": "calibration",
        "statistics": list(stored.statistics),
        "options": {name: _options(s) for name, s in stored.statistics.items() if _options(s)},
        "fingerprint": stored.fingerprint,
        "samples": stored.samples,
        "refused": dict(stored.refused),
        "unseen": dict(stored.unseen),
        "layers": {
            name: {
                "groups": layer.groups,
                "taps": layer.taps,
                "counts": stored.sums[name].counts,
            }
            for name, layer in stored.layers.items()
        },
        "groups": {name: list(sums.consumers) for name, sums in stored.groups.items()},
    }
    parts = {"statistics": save(apart(tensors))}
    return write_folder(
        folder,
        ACCOUNT,
        facts,
        parts,
        older=lambda old: (OLD_FILE,) if _is_old(old) else (),
        form=FORM,
    )


def _is_old(facts: Mapping[str, Any]) -> bool:
    return bool(facts["kind"] == "calibration" and facts["format"] < 3)


def _files(facts: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    if _is_old(facts):
        return {"statistics": (OLD_FILE, facts.get("hash", ""))}
    return named_parts(facts)


def load_sums(folder: str | os.PathLike[str], own: Iterable[Statistic] = ()) -> Stored:
    """Read what `save_sums` wrote; see `Calibration.load`."""
    source = Path(folder)
    path = source / ACCOUNT
    raw, files = read_folder(
        source, ACCOUNT, lambda: stored_json(path, "calibration", FORMAT), _files
    )
    facts = validated(raw, StoredFacts, path)
    check("statistics" in files, path, "files", "names no statistics.")
    tensors = read_tensors(files["statistics"], source, "statistics")
    rows = tensors.pop(ROWS, None)
    by_owner: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        owner, _, part = key.rpartition("|")
        by_owner.setdefault(owner, {})[part] = value
    statistics = _statistics(path, facts, own)
    layers, sums = {}, {}
    for name, entry in facts.layers.items():
        found = by_owner.pop(name, {})
        layer = layers[name] = checked_layer(path, name, entry, found)
        sizes = (*layer.weight.shape, entry.groups)
        totals = checked_sums(path, f"layers.{name}", found, statistics, sizes, classes=False)
        sums[name] = Sums(entry.by_source(), totals)
    groups = {}
    for name, consumers in facts.groups.items():
        place = f"groups.{name}"
        unknown_to = [n for n in consumers if n not in layers]
        check(not unknown_to and bool(consumers), path, place, "names no layers of the folder.")
        found = by_owner.pop(f"|{name}", {})
        check(bool(found), path, place, "has no sums among the tensors.")
        size = _classes(found)
        totals = checked_sums(path, place, found, statistics, (size, size, 1), classes=True)
        groups[name] = Sums(totals=totals, consumers=tuple(consumers))
    stray = next(iter(by_owner), None)
    check(stray is None, path, "layers", f"lacks {stray!r}, of which there are tensors.")
    return Stored(
        layers=layers,
        sums=sums,
        groups=groups,
        statistics=statistics,
        fingerprint=facts.fingerprint,
        samples=facts.samples,
        rows=None if rows is None else _rows(path, rows),
        refused=facts.refused,
        unseen=facts.unseen,
    )


def _classes(sums: Mapping[str, Tensor]) -> int:
    """The number of channel classes, which is the last axis of all sums over them."""
    first = next(iter(sums.values()))
    return int(first.shape[-1]) if first.ndim else 0


def _rows(path: Path, hashes: Tensor) -> RowSet:
    good = hashes.dtype == torch.int64 and hashes.ndim == 1
    check(good, path, "rows", f"are hashes of shape {tuple(hashes.shape)}, {hashes.dtype}.")
    return RowSet(hashes)


def _options(statistic: Statistic) -> dict[str, Any]:
    """The fields of a statistic that has some, as JSON knows them."""
    if not is_dataclass(statistic) or isinstance(statistic, type):
        return {}
    found: dict[str, Any] = json.loads(json.dumps(asdict(statistic), default=repr))
    return found


def _statistics(path: Path, facts: StoredFacts, own: Iterable[Statistic]) -> dict[str, Statistic]:
    """The statistics that a folder names: the caller's own, else those of the table."""
    given = resolved(own)
    found: dict[str, Statistic] = {}
    for name in facts.statistics:
        options = facts.options.get(name, {})
        if name in given:
            if _options(given[name]) != options:
                raise ValueError(
                    f"{path.parent} holds the statistic {name!r} with the options {options}, not "
                    f"{_options(given[name])}. Pass that one."
                )
            found[name] = given[name]
        elif name in STATISTICS:
            try:
                found[name] = STATISTICS[name](**options)
            except (TypeError, ValueError) as error:
                raise Fault(path, f"options.{name}", f"are none of it ({error}).") from None
        else:
            raise ValueError(
                f"{path.parent} holds the statistic {brief(repr(name))}, which is in no table. "
                f"Pass the instance: Calibration.load(folder, statistics=[...])."
            )
    return found


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    apart = {}
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        apart[key] = value
    return apart
