"""Calibrations as folders: safetensors and JSON, never pickle; those of version 0.1 load."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from prunus.calibration.statistics import STATISTICS, Source, Statistic, resolved
from prunus.calibration.sums import Sums
from prunus.files import named_parts, read_folder, write_folder
from prunus.layer import Layer
from prunus.rows import RowSet

__all__ = ["Stored", "apart", "load_sums", "save_sums", "stored_json"]

ROWS = "||rows"  # no layer has such a name
ACCOUNT = "calibration.json"
# 1: version 0.1, one count per layer and no statistics of channel classes; 2: one fixed file
FORMAT = 3
OLD_FILE = "statistics.safetensors"


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
        folder, ACCOUNT, facts, parts, older=lambda old: (OLD_FILE,) if _is_old(old) else ()
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
    facts, files = read_folder(
        source, ACCOUNT, lambda: stored_json(source / ACCOUNT, "calibration", FORMAT), _files
    )
    by_owner: dict[str, dict[str, Tensor]] = {}
    tensors = load(files["statistics"])
    rows = tensors.pop(ROWS, None)
    for key, value in tensors.items():
        owner, _, part = key.rpartition("|")
        by_owner.setdefault(owner, {})[part] = value
    try:
        layers, sums = {}, {}
        for name, entry in facts["layers"].items():
            found = by_owner[name]
            layers[name] = Layer(
                name=name,
                weight=found.pop("weight"),
                bias=found.pop("bias", None),
                groups=entry["groups"],
                taps=entry["taps"],
            )
            old = facts["format"] == 1
            counts: dict[Source, int] = {"inputs": entry["count"]} if old else entry["counts"]
            sums[name] = Sums({source: n for source, n in counts.items() if n}, found)
        return Stored(
            layers=layers,
            sums=sums,
            groups={
                name: Sums(totals=by_owner[f"|{name}"], consumers=tuple(consumers))
                for name, consumers in facts.get("groups", {}).items()
            },
            statistics=_statistics(source, facts, own),
            fingerprint=facts["fingerprint"],
            samples=facts["samples"],
            rows=None if rows is None else RowSet(rows),
            refused=facts["refused"],
            unseen=facts.get("unseen", {}),
        )
    except KeyError as error:
        raise ValueError(f"{source} is no whole calibration: {error} is missing.") from None


def _options(statistic: Statistic) -> dict[str, Any]:
    """The fields of a statistic that has some, as JSON knows them."""
    if not is_dataclass(statistic) or isinstance(statistic, type):
        return {}
    found: dict[str, Any] = json.loads(json.dumps(asdict(statistic), default=repr))
    return found


def _statistics(
    source: Path, facts: Mapping[str, Any], own: Iterable[Statistic]
) -> dict[str, Statistic]:
    """The statistics that a folder names: the caller's own, else those of the table."""
    given = resolved(own)
    found: dict[str, Statistic] = {}
    for name in facts["statistics"]:
        options = facts.get("options", {}).get(name, {})
        if name in given:
            if _options(given[name]) != options:
                raise ValueError(
                    f"{source} holds the statistic {name!r} with the options {options}, not "
                    f"{_options(given[name])}. Pass that one."
                )
            found[name] = given[name]
        elif name in STATISTICS:
            found[name] = STATISTICS[name](**options)
        else:
            raise ValueError(
                f"{source} holds the statistic {name!r}, which is in no table. Pass the instance: "
                f"Calibration.load(folder, statistics=[...])."
            )
    return found


def stored_json(path: Path, kind: str, newest: int) -> dict[str, Any]:
    """A JSON file that prunus wrote, or an error that says what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"No {path.name} in {path.parent}. Give a folder that prunus saved."
        )
    try:
        facts = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no JSON ({error}).") from None
    if not isinstance(facts, dict) or (
        facts.get("kind") != kind or not isinstance(facts.get("format"), int)
    ):
        raise ValueError(f"{path} is no {kind} that prunus saved. Give another folder.")
    if facts["format"] > newest:
        raise ValueError(
            f"{path} has format {facts['format']}, newer than {newest}, which this version "
            f"reads. Upgrade prunus."
        )
    return facts


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
