"""Locks that end with their process: on an open file, and on a folder."""

import contextlib
import errno
import io
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "Handle", "held", "is_at", "locked", "take", "unsupported"]

LOCK = ".prunus.lock"
PAUSE = 0.02  # seconds between two tries
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


class Handle(io.FileIO):
    """An unbuffered file that closes when nobody has it any more.

    A bare descriptor is lost, with its lock, where an interrupt comes between the call that opens
    it and the line that would close it.
    """

    def __del__(self) -> None:
        self.close()


def unsupported() -> bool:
    """Whether this system has no locks at all."""
    return fcntl is None


def take(file: Handle | int) -> bool | None:
    """Lock an open file if nobody holds it: True, False if somebody does, None if it cannot be.

    The lock belongs to this opening of the file, threads exclude each other too, and ends when it
    is closed or the process dies, however it dies.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _BUSY else None  # a file system without locks
    return True


@contextlib.contextmanager
def held(file: Handle) -> Iterator[None]:
    """Hold the lock of an open file, waiting for it; without one where the file system has none."""
    try:
        while take(file) is False:
            time.sleep(PAUSE)
        yield
    finally:
        _release(file)


def _release(file: Handle) -> None:
    if fcntl is not None:  # a forked child may have the file open, so that closing is not enough
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def is_at(file: Handle | int, path: str | os.PathLike[str]) -> bool:
    """Whether the open file is (still) the one that lies at `path`."""
    number = file if isinstance(file, int) else file.fileno()
    try:
        return os.path.samestat(os.fstat(number), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], *, wait: float = 60.0) -> Iterator[Handle]:
    """Keep other processes and threads that ask for this lock out of `folder`.

    The lock is a file there, `.prunus.lock`, which is gone afterwards; one that a dead process left
    is taken over. Reading asks for no lock.

    Args:
        folder: must exist.
        wait: seconds to wait for another holder; 0 refuses at once.

    Yields:
        the open lock file. What its holder adds to it is there for the next one, should this one
        be killed.

    Raises:
        TimeoutError: somebody else holds it.
        OSError: the folder cannot be written.
    """
    place = Path(folder) / LOCK
    file = None
    try:
        file = _lock_file(place, wait)
        yield file
    finally:
        if file is not None:
            if unsupported():
                file.close()  # there an open file cannot be removed
            with contextlib.suppress(OSError):
                os.unlink(place)
            if not file.closed:
                _release(file)
                file.close()


def _lock_file(place: Path, wait: float) -> Handle:
    end = time.monotonic() + wait
    while True:
        try:
            file = Handle(place, "a+")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(place.parent)) from None
        got = take(file)
        if got is None:
            warnings.warn(
                f"{place.parent} is on a file system without locks. Save there from one process "
                f"at a time.",
                stacklevel=4,
            )
        if got is None or (got and is_at(file, place)):  # or its holder has removed it
            return file
        file.close()
        if got is False and time.monotonic() >= end:
            raise TimeoutError(
                errno.ETIMEDOUT,
                "Another process is saving here. Wait for it, or name another folder",
                str(place.parent),
            )
        time.sleep(PAUSE if got is False else 0)
