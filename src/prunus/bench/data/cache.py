"""Trained networks kept by content hash: trained once, pruned often, shared by processes."""

import contextlib
import glob
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import prunus
from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import Task, fresh_model
from prunus.check import brief, positive
from prunus.files import make_folder, write_bytes
from prunus.reading import Schema, json_object, validated
from prunus.rng import generator_for

__all__ = ["Checkpoint", "cache_folder", "trained", "trainings"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """A trained dense network.

    Attributes:
        model: in evaluation mode.
        metrics: scores on the test part, as the task's `evaluate` gives them.
        key: hash of all that decides the weights.
        path: the file it lies in.
        cached: whether it was read and not trained now.
        seconds: what the training took when it was done.
    """

    model: nn.Module
    metrics: Mapping[str, float]
    key: str
    path: Path
    cached: bool
    seconds: float


def cache_folder(folder: str | Path | None = None) -> Path:
    """`folder`, or what PRUNUS_CACHE names, or ~/.cache/prunus."""
    return Path(folder or os.environ.get("PRUNUS_CACHE") or Path.home() / ".cache" / "prunus")


def trained(
    chosen: Task,
    data: Dataset,
    *,
    seed: int,
    cache: str | Path | None = None,
    progress: bool | None = None,
) -> Checkpoint:
    """The task's network, trained from `seed`: read from the cache, or trained and put there.

    The file's name is a hash of the task's definition, the architecture, the seed, the data's
    fingerprint and the versions of prunus and torch. Files appear whole, so several processes may
    ask at once: each may train, all get the same weights. A damaged file is said so on standard
    error and made again; one that cannot be written after the training (a full disk) too.

    Raises:
        OSError: the cache folder cannot be made.
    """
    model = fresh_model(chosen, seed)
    identity = {
        "task": chosen.name,
        "definition": chosen.definition,
        "architecture": repr(model),
        "state": {name: list(t.shape) for name, t in model.state_dict().items()},
        "seed": seed,
        "data": data.fingerprint,
        "prunus": prunus.__version__,
        "torch": torch.__version__,
    }
    text = json.dumps(identity, sort_keys=True)
    key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    path = cache_folder(cache) / "trained" / f"{_stem(chosen)}-{key}.safetensors"
    if path.exists():
        try:
            return _read(path, model, key)
        except _Damaged as damage:
            _say(f"{path} is damaged ({damage}); training again")
    make_folder(path.parent)  # said now, not after the training
    begun = time.perf_counter()
    generator = generator_for(seed, "training", chosen.name)
    chosen.train(model, data, generator=generator, hold=None, progress=progress)
    seconds = time.perf_counter() - begun
    metrics = {name: float(value) for name, value in chosen.evaluate(model, data).items()}
    try:
        _write(path, model, key, text, metrics, seconds)
    except OSError as error:
        _say(f"{path} could not be written ({error.strerror}); the network is not kept")
    return Checkpoint(
        model=model.eval(), metrics=metrics, key=key, path=path, cached=False, seconds=seconds
    )


def trainings(chosen: Task, cache: str | Path | None = None) -> tuple[list[float], set[int]]:
    """The seconds that the cached networks of a task took, and the seeds whose networks are there.

    The data are not read: networks count that have the task's definition and these versions.
    """
    from safetensors import SafetensorError, safe_open

    taken, seeds = [], set()
    for path in sorted((cache_folder(cache) / "trained").glob(f"{glob.escape(_stem(chosen))}-*")):
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
            identity = json_object(metadata["identity"], path)
            seconds, seed = _seconds(metadata), int(identity["seed"])
            found = tuple(identity[key] for key in ("task", "definition", "prunus", "torch"))
        except (SafetensorError, KeyError, ValueError, TypeError, OverflowError, OSError):
            continue  # `trained` says what is damaged and makes it again
        if found == (chosen.name, chosen.definition, prunus.__version__, torch.__version__):
            taken.append(seconds)
            seeds.add(seed)
    return taken, seeds


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"prunus: {text}", file=sys.stderr)


def _seconds(metadata: Mapping[str, str]) -> float:
    seconds = float(metadata["seconds"])
    return positive("seconds", seconds, zero=True)


def _stem(chosen: Task) -> str:
    """The task's name as far as a file's name has room for it; the hash tells tasks apart."""
    name = chosen.name.replace(":", ".").replace("/", ".")
    return name.encode()[:180].decode(errors="ignore")


class _Scores(Schema):
    """The scores of a network."""

    scores: dict[str, float]


class _Damaged(Exception):
    """The file is not what was written."""


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def _write(
    path: Path,
    model: nn.Module,
    key: str,
    identity: str,
    metrics: Mapping[str, float],
    seconds: float,
) -> None:
    from safetensors.torch import save

    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
    metadata = {
        "key": key,
        "identity": identity,
        "metrics": json.dumps(metrics),
        "seconds": repr(seconds),
        "digest": _digest(tensors),
    }
    write_bytes(path, save(tensors, metadata))


def _read(path: Path, model: nn.Module, key: str) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("key") != key:
                raise _Damaged("its contents do not fit their checksum")
            own, names = model.state_dict(), stored.keys()
            if set(names) != set(own):
                raise _Damaged("its tensors are not those of the network")
            for name, value in own.items():
                if stored.get_slice(name).get_shape() != list(value.shape):
                    raise _Damaged(f"{name!r} has not the shape that the network's has")
            tensors = {name: stored.get_tensor(name) for name in names}
        if any(tensors[name].dtype != value.dtype for name, value in own.items()):
            raise _Damaged("its tensors are not of the network's types")
        metrics = dict(
            validated({"scores": json_object(metadata["metrics"], path)}, _Scores, path).scores
        )
        seconds = _seconds(metadata)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise _Damaged(f"{type(error).__name__}: {brief(str(error))}") from None
    if metadata.get("digest") != _digest(tensors):
        raise _Damaged("its contents do not fit their checksum")
    model.load_state_dict(tensors)
    return Checkpoint(
        model=model.eval(), metrics=metrics, key=key, path=path, cached=True, seconds=seconds
    )
