"""Records of runs: rows, their files, and SQL over them."""

from prunus.bench.record.row import Record, content_id
from prunus.bench.record.store import (
    RecordIndex,
    Records,
    RecordWriter,
    read_records,
    record_files,
)
from prunus.host import host_facts

__all__ = [
    "Record",
    "RecordIndex",
    "RecordWriter",
    "Records",
    "content_id",
    "host_facts",
    "read_records",
    "record_files",
]
