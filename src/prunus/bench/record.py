"""One row per run, appended to one file per writer, so that a killed run loses nothing."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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

FORMAT = 1  # raised when a field changes its meaning
Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one pruning run was asked to do and what came of it.

    `id` names the cell: equal ids mean equal work (see `content_id`).

    Attributes:
        id: hash of task, recipe, budget, schedule, seed and version.
        task: the task's or the model's name.
        recipe: the recipe's name in the tables, or its repr.
        recipe_repr: the recipe as Python.
        recipe_hash: its hash over all fields.
        seed: of the pruning's random choices.
        model_seed: of the dense network's training; None where it was given.
        density_asked: kept / total as asked; None for other budgets.
        density: kept / total as met, with design's denominator.
        density_whole: kept / total over all parameters.
        budget: the budget as Python.
        schedule: the schedule as Python.
        before: scores of the dense network.
        after: scores after pruning.
        retrained: scores after retraining; None without.
        layer_error: mean squared output error on the calibration inputs by layer.
        layer_density: kept / total by layer.
        parameters: stored weights, dense and pruned.
        macs: multiply-adds per sample, dense and pruned.
        bytes: storage, dense and pruned.
        latency: of the compact network, with the dense one's and interval; None if not measured.
        seconds: wall time of the run.
        peak_memory: highest resident bytes of the process during the run (on Linux; elsewhere since
            its start); None if unknown.
        certificate: of the run, as JSON; None if not asked for.
        data: fingerprint of the calibration data.
        versions: of prunus, torch, numpy and Python.
        host: of the machine; see `host_facts`.
        status: "done" or "failed".
        traceback: of a failed run.
        extra: whatever else a caller wants kept.
    """

    id: str
    task: str
    recipe: str
    recipe_repr: str
    recipe_hash: str
    seed: int
    density_asked: float | None
    density: float | None
    model_seed: int | None = None
    density_whole: float | None = None
    budget: str = ""
    schedule: str = ""
    before: Metrics = field(default_factory=dict)
    after: Metrics = field(default_factory=dict)
    retrained: Metrics | None = None
    layer_error: Metrics = field(default_factory=dict)
    layer_density: Metrics = field(default_factory=dict)
    parameters: tuple[int, int] | None = None
    macs: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None
    latency: Mapping[str, Any] | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    certificate: Mapping[str, Any] | None = None
    data: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    status: str = "done"
    traceback: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """The record as JSON takes it, with the format's number."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Record":
        """The record of a row that `to_row` made.

        Raises:
            ValueError: a newer format, or fields that are lacking or unknown.
        """
        values = dict(row)
        number = values.pop("format", None)
        if not isinstance(number, int) or number > FORMAT:
            raise ValueError(
                f"The row has format {number!r}; this version of prunus reads up to {FORMAT}. "
                f"Update prunus."
            )
        for name in ("parameters", "macs", "bytes"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"The row is no record of prunus: {error}.") from None


def content_id(**identity: Any) -> str:
    """A hash of the keyword arguments, whatever their order; values are anything JSON takes.

    Example:
        >>> content_id(task="digits-mlp", seed=0) == content_id(seed=0, task="digits-mlp")
        True
    """
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@functools.cache
def _host() -> dict[str, Any]:
    import torch

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "name": socket.gethostname(),
        "system": platform.platform(),
        "processor": model,
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def host_facts() -> dict[str, Any]:
    """The machine's name, system, processor, cores and accelerator, and torch's threads."""
    import torch

    return {**_host(), "threads": torch.get_num_threads()}


class RecordWriter:
    """Appends records to a file of its own in `folder`; each is on disk when `append` returns.

    The file's name holds host, process and a random part, so that any number of writers on one
    machine or a shared disk never meet.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"records-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self.path = self.folder / name
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._end = 0

    def append(self, record: Record) -> None:
        """Write one line and flush it to disk.

        Raises:
            OSError: the disk is full or gone; the rows before stay whole and the torn part of
                this one is cut off again.
            ValueError: a value is NaN, infinite or nothing JSON takes.
        """
        line = json.dumps(record.to_row(), allow_nan=False, sort_keys=True) + "\n"
        data = memoryview(line.encode())
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except BaseException:  # an interruption too, or the next line would join a torn one
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
            raise
        self._end += len(data)

    def close(self) -> None:
        """Close the file; one that got no record is removed."""
        os.close(self._file)
        if self._end == 0:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class RecordIndex:
    """Which cells a folder of records holds; a question reads only what was added since the last.

    Lines that are cut off or damaged count as absent; `read_records` tells of them.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._files: dict[str, tuple[int, dict[str, str]]] = {}

    def status(self, identity: str) -> str | None:
        """ "done", "failed", or None without a record."""
        found: dict[str, tuple[int, dict[str, str]]] = {}
        for entry in os.scandir(self._folder):
            if entry.name.endswith(".jsonl"):
                size, known = self._files.get(entry.name, (0, {}))
                with contextlib.suppress(FileNotFoundError):  # an empty one its writer took away
                    if entry.stat().st_size > size:
                        size += _take(Path(entry.path), size, known)
                    found[entry.name] = size, known
        self._files = found  # files that were taken away are forgotten
        states = {known[identity] for _, known in found.values() if identity in known}
        return "done" if "done" in states else next(iter(states), None)


def _take(file: Path, begin: int, known: dict[str, str]) -> int:
    """Read on from a place in a file; the bytes of the whole lines there."""
    with file.open("rb") as stream:
        stream.seek(begin)
        text = stream.read()
    whole = text.rfind(b"\n") + 1
    for line in text[:whole].splitlines():
        try:
            row = json.loads(line)
            if known.get(row["id"]) != "done":
                known[row["id"]] = row["status"]
        except (ValueError, KeyError, TypeError):
            continue
    return whole


@dataclass(frozen=True)
class Records:
    """What lies in a folder of records.

    Attributes:
        rows: all whole rows, by file name and then in the order written.
        torn: files whose last line was cut off by a kill; that line is left out.
    """

    rows: Sequence[Record]
    torn: Sequence[Path]


def record_files(places: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files of records at `places`: `.jsonl` and `.parquet` files, or all those in folders.

    Raises:
        FileNotFoundError: a place that is not there, or a folder without records.
    """
    given = [places] if isinstance(places, str | os.PathLike) else list(places)
    files: list[Path] = []
    for place in map(Path, given):
        found = [place]
        if place.is_dir():
            found = sorted([*place.glob("*.jsonl"), *place.glob("*.parquet")])
        if not found or not found[0].exists():
            raise FileNotFoundError(
                f"No records at {place}: name a .jsonl or .parquet file, or a folder that holds "
                f"some."
            )
        files += found
    return files


def read_records(places: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Records:
    """Read `.jsonl` files and the `.parquet` files of `sql.compact`, or all of them in folders.

    Raises:
        ImportError: a Parquet file, and no DuckDB; the message names the extra.
        FileNotFoundError: a place that is not there, or a folder without records.
        ValueError: a damaged line that is not the last of its file; it names file and line.
    """
    rows: list[Record] = []
    torn: list[Path] = []
    given = [places] if isinstance(places, str | os.PathLike) else list(places)
    named = set(map(Path, given))
    for file in record_files(given):
        if file.suffix == ".parquet":
            rows += map(Record.from_row, _parquet(file))
            continue
        try:
            *lines, rest = file.read_bytes().split(b"\n")
        except FileNotFoundError:
            if file in named:
                raise
            continue  # a writer took its empty file away since the folder was listed
        if rest:
            torn.append(file)
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(Record.from_row(json.loads(line)))
            except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
                raise ValueError(
                    f"{file}, line {number} is damaged ({error}). Remove the line to go on "
                    f"without it."
                ) from None
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    return Records(tuple(rows), tuple(torn))


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    from prunus.bench.sql import parquet_rows

    return parquet_rows(file)
