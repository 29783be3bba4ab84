"""Locks that end with their process: on an open file, and on a folder."""

import contextlib
import errno
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "held", "is_at", "locked", "take", "unsupported"]

LOCK = ".prunus.lock"
PAUSE = 0.02  # seconds between two tries
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


def unsupported() -> bool:
    """Whether this system has no locks at all."""
    return fcntl is None


def take(handle: int) -> bool | None:
    """Lock an open file if nobody holds it: True, False if somebody does, None if it cannot be.

    The lock belongs to this opening of the file, threads exclude each other too, and ends when it
    is closed or the process dies, however it dies.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _BUSY else None  # a file system without locks
    return True


@contextlib.contextmanager
def held(handle: int) -> Iterator[None]:
    """Hold the lock of an open file, waiting for it; without one where the file system has none."""
    while take(handle) is False:
        time.sleep(PAUSE)
    try:
        yield
    finally:
        _release(handle)


def _release(handle: int) -> None:
    if fcntl is not None:  # a forked child may have the file open, so that closing is not enough
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)


def is_at(handle: int, path: str | os.PathLike[str]) -> bool:
    """Whether the open file is (still) the one that lies at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], *, wait: float = 60.0) -> Iterator[int]:
    """Keep other processes and threads that ask for this lock out of `folder`.

    The lock is a file there, `.prunus.lock`, which is gone afterwards; one that a dead process left
    is taken over. Reading asks for no lock.

    Args:
        folder: must exist.
        wait: seconds to wait for another holder; 0 refuses at once.

    Yields:
        the open lock file. What its holder wrote into it is there for the next one, should this
        one be killed.

    Raises:
        TimeoutError: somebody else holds it.
        OSError: the folder cannot be written.
    """
    handle = _lock_file(Path(folder), wait)
    try:
        yield handle
    finally:
        if unsupported():
            os.close(handle)  # there an open file cannot be removed
            handle = -1
        with contextlib.suppress(OSError):
            os.unlink(Path(folder) / LOCK)
        if handle >= 0:
            _release(handle)
            os.close(handle)


def _lock_file(folder: Path, wait: float) -> int:
    end = time.monotonic() + wait
    while True:
        try:
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from None
        try:
            got = take(handle)
            if got is None:
                warnings.warn(
                    f"{folder} is on a file system without locks. Save there from one process at "
                    f"a time.",
                    stacklevel=4,
                )
            if got is None or (got and is_at(handle, folder / LOCK)):  # or its holder removed it
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if got is False and time.monotonic() >= end:
            raise TimeoutError(
                errno.ETIMEDOUT,
                "Another process is saving here. Wait for it, or name another folder",
                str(folder),
            )
        time.sleep(PAUSE if got is False else 0)
