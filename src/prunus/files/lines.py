"""Files of lines that are appended one by one, each on disk before the next."""

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prunus.files.lock import Handle, held, is_at
from prunus.files.single import make_folder, sync_folder

__all__ = [
    "KnownRow", "LineFile", "Row", "Rows", "named_numbers", "numbers", "row_text", "whole_lines",
]  # fmt: skip

# One flat record: text, numbers and lists by name. Which of them a name holds, its maker says.
Row = dict[str, Any]
KnownRow = Mapping[str, Any]  # to be read
Rows = Sequence[KnownRow]

_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class LineFile:
    """A file of JSON lines that may have several writers; a line is on disk when `append` returns.

    A line that a killed writer left torn is cut off by the next one.
    """

    def __init__(self, path: str | os.PathLike[str], *, new: bool = False) -> None:
        """Open or make the file, and its folder.

        Args:
            path: of the file; symbolic links are followed.
            new: refuse one that is there.

        Raises:
            OSError: it cannot be written, or is no regular file.
        """
        self.path = Path(os.path.realpath(path))
        make_folder(self.path.parent)
        if self.path.exists() and not self.path.is_file():
            raise OSError(errno.EINVAL, "This is no file that lines can be added to", str(path))
        there = self.path.exists()
        self._file = Handle(self.path, "x+" if new else "a+")
        if not there:
            sync_folder(self.path.parent)

    def append(self, line: str) -> None:
        """Write one line and flush it to disk.

        Raises:
            OSError: the disk is full, or the file was taken away. The lines before stay whole, and
                the torn part of this one is cut off again.
        """
        data, number = memoryview(line.encode() + b"\n"), self._file.fileno()
        with held(self._file):
            end = self._mended()
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(number, data[written:], end + written)
                os.fsync(number)
            except BaseException as error:  # an interruption too, or the next would join a torn one
                os.ftruncate(number, end)
                if isinstance(error, OSError) and error.filename is None:
                    raise OSError(error.errno, error.strerror, str(self.path)) from None
                raise
        if not is_at(self._file, self.path):  # written, but where nobody will find it
            raise FileNotFoundError(
                errno.ENOENT, "The file was taken away while lines were added", str(self.path)
            )

    def _mended(self) -> int:
        """Where the whole lines end, what is torn behind them cut off."""
        number = self._file.fileno()
        size = os.fstat(number).st_size
        begin, tail = size, b""
        while begin > 0 and b"\n" not in tail:
            step = min(begin, 1 << 16)
            begin -= step
            tail = os.pread(number, step, begin) + tail
            if tail.endswith(b"\n"):
                return size
        rest = tail[tail.rfind(b"\n") + 1 :]
        if not rest:
            return size
        if _is_json(rest):  # whole, written by somebody who ends no line
            os.pwrite(number, b"\n", size)
            return size + 1
        os.ftruncate(number, size - len(rest))
        return size - len(rest)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def whole_lines(path: str | os.PathLike[str]) -> tuple[list[bytes], bool]:
    """The whole lines of a file, and whether the last one is torn and left out."""
    *lines, rest = Path(path).read_bytes().split(b"\n")
    if rest and _is_json(rest):
        return [*lines, rest], False
    return lines, bool(rest)


def row_text(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON, which has no word for NaN and infinity: they stand as text.

    Raises:
        TypeError: a value is nothing that JSON takes.
    """
    return json.dumps(named_numbers(row), allow_nan=False)


def named_numbers(value: Any) -> Any:
    """The value with "NaN", "Infinity" and "-Infinity" for such numbers; see `numbers`."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: named_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [named_numbers(entry) for entry in value]
    return value


def numbers(value: Any) -> Any:
    """The numbers that `named_numbers` named; where a value is to be a number or several."""
    if isinstance(value, Mapping):
        return {key: numbers(entry) for key, entry in value.items()}
    return _NAMES.get(value, value) if isinstance(value, str) else value


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
