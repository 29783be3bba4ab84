"""The benchmark: data sets, tasks, trained networks and records."""

from prunus.bench.cache import Checkpoint, cache_folder, trained
from prunus.bench.cell import BASELINES, Cell
from prunus.bench.data import DATA_SETS, Dataset, load_data, stratified_split
from prunus.bench.executors import Executor, make_executor
from prunus.bench.grid import Grid, cells, load_grid
from prunus.bench.record import (
    Record,
    Records,
    RecordWriter,
    content_id,
    host_facts,
    read_records,
)
from prunus.bench.sql import compact, query
from prunus.bench.sweep import Sweep, run, unique
from prunus.bench.tasks import TASKS, Task, fresh_model, task
from prunus.bench.train import Training, accuracy, evaluate, fit

__all__ = [
    "BASELINES",
    "DATA_SETS",
    "TASKS",
    "Cell",
    "Checkpoint",
    "Dataset",
    "Executor",
    "Grid",
    "Record",
    "RecordWriter",
    "Records",
    "Sweep",
    "Task",
    "Training",
    "accuracy",
    "cache_folder",
    "cells",
    "compact",
    "content_id",
    "evaluate",
    "fit",
    "fresh_model",
    "host_facts",
    "load_data",
    "load_grid",
    "make_executor",
    "query",
    "read_records",
    "run",
    "stratified_split",
    "task",
    "trained",
    "unique",
]
