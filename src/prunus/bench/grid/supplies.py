"""What the cells of a grid share: data sets, trained networks, statistics; a few are kept."""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunus.bench.data.cache import Checkpoint, trained
from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import task
from prunus.bench.grid.cell import Cell
from prunus.calibration import Calibration, Statistic, calibrate
from prunus.rng import generator_for

__all__ = ["Bench", "batches_of", "calibration_of", "data_of", "dense_of", "draw_of"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a worker finds things; none of it decides a result.

    Attributes:
        out: folder of the records.
        cache: folder of trained networks; None for the usual one.
        data_dir: folder with the data sets; None for PRUNUS_DATA.
        paths: folders where the tasks' modules are looked for.
        threads: torch threads.
        parent: process that a worker must not outlive; 0 for none.
        retry_failed: whether a cell that is recorded as failed is still to be done.
    """

    out: str
    cache: str | None = None
    data_dir: str | None = None
    paths: tuple[str, ...] = ()
    threads: int = 1
    parent: int = 0
    retry_failed: bool = False


@functools.lru_cache(maxsize=2)
def data_of(name: str, data_dir: str | None) -> Dataset:
    """The data set of a task; the last two are kept."""
    return task(name).data(data_dir=data_dir)


@functools.lru_cache(maxsize=2)
def dense_of(name: str, seed: int, data_dir: str | None, cache: str | None) -> Checkpoint:
    """The trained dense network of a task and seed, from the cache or trained now."""
    return trained(task(name), data_of(name, data_dir), seed=seed, cache=cache, progress=False)


@functools.lru_cache(maxsize=4)
def calibration_of(
    name: str,
    seed: int,
    data_dir: str | None,
    cache: str | None,
    samples: int,
    draw: int | None,
    statistics: tuple[str | Statistic, ...],
) -> Calibration:
    """The statistics of a trained network on its samples; the last four are kept."""
    model = dense_of(name, seed, data_dir, cache).model
    data = batches_of(data_of(name, data_dir), samples, draw)
    return calibrate(model, data, statistics, seed=seed, progress=False)


def draw_of(cell: Cell) -> int | None:
    """The seed that draws the samples; None for the first ones."""
    return None if cell.settings.network is None else cell.seed


def batches_of(data: Dataset, samples: int, draw: int | None) -> list[tuple[Tensor, Tensor]]:
    """The training samples that calibrate: the first, or those that are drawn."""
    if draw is None:
        return data.batches(limit=samples)
    order = torch.randperm(len(data.x_train), generator=generator_for(draw, "calibration"))
    chosen = order[:samples].sort().values
    return replace(data, x_train=data.x_train[chosen], y_train=data.y_train[chosen]).batches()
