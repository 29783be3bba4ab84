"""Folders written aside, which get their name once they are whole; and folders for a while."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from prunus.files.lock import is_at, take, unsupported
from prunus.files.single import make_folder, naming, sync_folder

__all__ = ["Scratch", "new_folder"]


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to be filled, which is called `path` at the end of the block.

    It is on disk then. On any error, interruption or kill before, nothing is called so. What killed
    writers left aside beside it is removed.

    Raises:
        FileExistsError: `path` is a file, or a folder that is not empty.
        OSError: it cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(
            errno.EEXIST, "There is something already. Give a new or an empty folder", str(path)
        )
    make_folder(target.parent)
    aside, lock = _held(target.parent, ".prunus-{}.folder", 0o777)
    try:
        with naming(path):
            yield aside
            _synced(aside)
            os.replace(aside, target)
            sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        if lock >= 0:
            os.close(lock)


def _synced(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb+") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


class Scratch:
    """A folder for what is needed for a while; it goes with this object, at any exit.

    What killed processes left beside it goes when the next one is made.
    """

    def __init__(self, parent: str | os.PathLike[str] | None = None) -> None:
        """Make one.

        Args:
            parent: where; the system's place for such where None.
        """
        place = Path(tempfile.gettempdir() if parent is None else parent)
        self.path, lock = _held(place, "prunus-{}.scratch", 0o700)  # others may not look in
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove it."""
        self._end()


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if lock >= 0:
        os.close(lock)


def _held(parent: Path, form: str, mode: int) -> tuple[Path, int]:
    """A new folder that is locked as long as its writer lives; dead ones' go."""
    _sweep(parent, re.compile(re.escape(form).replace(r"\{\}", "[0-9a-f]{16}")))
    while True:
        folder = parent / form.format(secrets.token_hex(8))
        folder.mkdir(mode)
        if unsupported():
            return folder, -1
        with contextlib.suppress(FileNotFoundError):  # taken for a dead one's before it was locked
            lock = os.open(folder, os.O_RDONLY)
            if take(lock) is not False and is_at(lock, folder):
                return folder, lock
            os.close(lock)


def _sweep(parent: Path, form: re.Pattern[str]) -> None:
    """Remove what writers that were killed left; a living one holds its folder's lock."""
    if unsupported():
        return
    with contextlib.suppress(OSError):
        for name in filter(form.fullmatch, os.listdir(parent)):
            with contextlib.suppress(OSError):  # gone, or another user's
                lock = os.open(parent / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if os.fstat(lock).st_uid == os.geteuid() and take(lock):
                        shutil.rmtree(parent / name)
                finally:
                    os.close(lock)
