"""The benchmark: data sets, tasks, trained networks and records."""

from prunus.bench.data.cache import Checkpoint, cache_folder, trained
from prunus.bench.data.sets import DATA_SETS, Dataset, load_data, stratified_split
from prunus.bench.data.tasks import TASKS, Task, fresh_model, steps_of, task, trainer
from prunus.bench.data.train import Distil, Training, accuracy, evaluate, fit
from prunus.bench.grid.cell import BASELINES, Cell
from prunus.bench.grid.config import Grid, cells
from prunus.bench.grid.engines import make_executor
from prunus.bench.grid.executors import Executor
from prunus.bench.grid.load import load_grid
from prunus.bench.grid.sweep import Sweep, run, unique
from prunus.bench.record import Record, Records, RecordWriter, content_id, read_records
from prunus.bench.record.sql import compact, query
from prunus.host import host_facts

__all__ = [
    "BASELINES",
    "DATA_SETS",
    "TASKS",
    "Cell",
    "Checkpoint",
    "Dataset",
    "Distil",
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
    "steps_of",
    "stratified_split",
    "task",
    "trained",
    "trainer",
    "unique",
]
