"""Standard output and error that may break without stopping the work."""

import contextlib
import os
import sys
from typing import Any

__all__ = ["Patient", "open_closed"]


class Patient:
    """A text stream that drops what it cannot write: a pipe nobody reads, a full device.

    All else is the stream's. `broken` is the first error, or None.
    """

    def __init__(self, stream: Any, *, divert: bool = False) -> None:
        """Wrap a stream.

        Args:
            stream: a text stream, which is written to.
            divert: let the process's descriptor lead nowhere from the first error on, so that the
                interpreter does not complain about what is left when it ends.
        """
        self._stream = stream
        self._divert = divert
        self.broken: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or drop."""
        if self.broken is None:
            try:
                return int(self._stream.write(text))
            except OSError as error:
                self._break(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        if self.broken is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._break(error)

    def _break(self, error: OSError) -> None:
        self.broken = error
        if self._divert:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_closed() -> None:
    """Open the standard descriptors that are closed (`>&-`): the next file would be one of them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 for the process's life
