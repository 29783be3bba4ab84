"""Data sets, tasks and the networks trained on them."""

from prunus.bench.data.sets import DATA_SETS, Dataset, load_data, stratified_split

__all__ = ["DATA_SETS", "Dataset", "load_data", "stratified_split"]
