"""The benchmark: data sets, tasks, trained networks and records."""

from prunus.bench.cache import Checkpoint, cache_folder, trained
from prunus.bench.data import DATA_SETS, Dataset, load_data, stratified_split
from prunus.bench.record import (
    Record,
    Records,
    RecordWriter,
    content_id,
    host_facts,
    read_records,
)
from prunus.bench.tasks import TASKS, Task, fresh_model, task
from prunus.bench.train import Training, accuracy, evaluate, fit

__all__ = [
    "DATA_SETS",
    "TASKS",
    "Checkpoint",
    "Dataset",
    "Record",
    "RecordWriter",
    "Records",
    "Task",
    "Training",
    "accuracy",
    "cache_folder",
    "content_id",
    "evaluate",
    "fit",
    "fresh_model",
    "host_facts",
    "load_data",
    "read_records",
    "stratified_split",
    "task",
    "trained",
]
