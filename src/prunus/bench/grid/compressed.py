"""Pruned networks of a grid as compressed files: the ways asked for, their bytes and scores."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import Task
from prunus.bench.data.train import cross_entropy
from prunus.compression import RateDistortion, compress
from prunus.compression.write import Values
from prunus.result import Pruned
from prunus.rng import generator_for

__all__ = ["Way", "compressed_ways", "way_of"]

CURVED = 1000  # training samples that the curvature is taken from


@dataclass(frozen=True)
class Way:
    """How a network is compressed, as a grid says it in words.

    Attributes:
        values: None for lossless, a number, or {glob: number}.
        rate: tolerance of the held-out cross-entropy in nats for values by rate and distortion.
        tuned: train the shared values on, as the task says.
        published: write the file of Han et al. (2015b).
    """

    values: int | Mapping[str, int] | None = None
    rate: float | None = None
    tuned: bool = False
    published: bool = False


def way_of(text: str) -> Way:
    """The way that words mean: `lossless`, `8`, `conv*=256,fc*=32` or `rate=0.01`; then flags.

    After a space `tuned`, `published` or both.

    Raises:
        ValueError: anything else.
    """
    first, *flags = text.split() or [""]
    unknown = [flag for flag in flags if flag not in ("tuned", "published")]
    values: int | dict[str, int] | None = None
    rate: float | None = None
    try:
        if first.startswith("rate="):
            rate = float(first.removeprefix("rate="))
            if not rate >= 0:
                raise ValueError
        elif "=" in first:
            pairs = [part.rpartition("=") for part in first.split(",")]
            values = {glob: int(number) for glob, _, number in pairs}
        elif first != "lossless":
            values = int(first)
    except ValueError:
        unknown.append(first)
    counts = values.values() if isinstance(values, dict) else [1 if values is None else values]
    if unknown or not all(1 <= k <= 4096 for k in counts):
        raise ValueError(
            f"a way to compress is lossless, a number of values in [1, 4096] such as 8, "
            f"conv*=256,fc*=32, or rate=0.01 (nats), and then tuned or published; got {text!r}"
        )
    if values is None and rate is None and flags:
        raise ValueError(f"lossless takes neither tuned nor published, got {text!r}")
    if rate is not None and "published" in flags:
        raise ValueError(f"the published file shares values by number, got {text!r}")
    return Way(values, rate, "tuned" in flags, "published" in flags)


def compressed_ways(
    ways: tuple[str, ...],
    chosen: Task,
    seed: int,
    pruned: Pruned,
    data: Dataset,
    data_dir: str | None,
) -> dict[str, Any]:
    """{way: bytes, parts and scores} of a pruned network compressed in each of the ways."""
    return {text: _compressed(text, chosen, seed, pruned, data, data_dir) for text in ways}


def _compressed(
    text: str, chosen: Task, seed: int, pruned: Pruned, data: Dataset, data_dir: str | None
) -> dict[str, Any]:
    way = way_of(text)

    def tune(model: nn.Module) -> None:
        generator = generator_for(seed, "shared values", chosen.name)
        train = chosen.retrain if chosen.tune is None else chosen.tune
        train(model, data, generator=generator, hold=None, progress=False)

    values: Values = way.values
    if way.rate is not None:
        values = RateDistortion(
            loss=_held_out(chosen, data_dir),
            tolerance=way.rate,
            data=data.batches(limit=CURVED),
        )
    with tempfile.TemporaryDirectory() as folder:
        found = compress(
            pruned,
            Path(folder) / "network.safetensors",
            values=values,
            fine_tune=tune if way.tuned else None,
            coder="published" if way.published else "adaptive",
            progress=False,
        )
    model = found.pruned.model
    if found.pruned.stored_compact is not None:
        model = found.pruned.stored_compact
    return {
        "bytes": found.bytes,
        "dense_bytes": found.dense_bytes,
        "parts": {name: dict(own) for name, own in found.parts.items()},
        "layers": {name: dict(own) for name, own in found.layers.items()},
        "lam": found.lam,
        "scores": {n: float(v) for n, v in chosen.evaluate(model, data).items()},
    }


def _held_out(chosen: Task, data_dir: str | None) -> Any:
    if chosen.held_out is None:
        raise ValueError(
            f"Task {chosen.name} holds no samples out from training, which `rate=` measures on. "
            f"Give it `held_out`, or compress by a number of values."
        )
    held = chosen.held_out(data_dir=data_dir)

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return cross_entropy(model, held.x_train, held.y_train)

    return loss
