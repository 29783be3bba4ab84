"""Rows appended to one file per writer, so that a killed run loses nothing, and read again."""

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from prunus.bench.record.parquet import parquet_rows
from prunus.bench.record.row import Record
from prunus.files import LineFile, whole_lines
from prunus.reading import json_object

__all__ = [
    "RecordIndex",
    "RecordWriter",
    "Records",
    "read_records",
    "record_files",
]


class RecordWriter:
    """Appends records to a file of its own in `folder`; each is on disk when `append` returns.

    The file's name holds host, process and a random part, so that any number of writers on one
    machine or a shared disk never meet.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        name = f"records-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._file = LineFile(self.folder / name, new=True)
        self.path = self.folder / name
        self._rows = 0

    def append(self, record: Record) -> None:
        """Write one line and flush it to disk.

        Raises:
            OSError: the disk is full, or the file was taken away; see `LineFile.append`.
            TypeError: a value is nothing that JSON takes.
        """
        self._file.append(json.dumps(record.to_row(), allow_nan=False, sort_keys=True))
        self._rows += 1

    def close(self) -> None:
        """Close the file; one that got no record is removed."""
        self._file.close()
        if self._rows == 0:
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
            row = json_object(line, file)
        except ValueError:
            continue
        name, status = row.get("id"), row.get("status")
        if isinstance(name, str) and isinstance(status, str) and known.get(name) != "done":
            known[name] = status
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
            rows += map(Record.from_row, parquet_rows(file))
            continue
        try:
            lines, cut = whole_lines(file)
        except FileNotFoundError:
            if file in named:
                raise
            continue  # a writer took its empty file away since the folder was listed
        if cut:
            torn.append(file)
        for number, line in enumerate(lines, start=1):
            try:
                row = json_object(line, "it")
            except ValueError as error:
                raise ValueError(
                    f"{file}, line {number} is damaged ({error}) Remove the line to go on "
                    f"without it."
                ) from None
            try:
                rows.append(Record.from_row(row))
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    return Records(tuple(rows), tuple(torn))
