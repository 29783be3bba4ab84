"""Folders that other software reads: written aside, and given their name once they are whole."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from prunus.files.lock import take, unsupported
from prunus.files.single import make_folder, sync_folder

__all__ = ["new_folder"]

_ASIDE = re.compile(r"\.prunus-[0-9a-f]{16}\.folder")


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
    _sweep(target.parent)
    aside = target.parent / f".prunus-{secrets.token_hex(8)}.folder"
    aside.mkdir()
    lock = -1 if unsupported() else os.open(aside, os.O_RDONLY)
    try:
        if lock >= 0:
            take(lock)
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


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed left; a living one holds its folder's lock."""
    if unsupported():
        return
    with contextlib.suppress(OSError):
        for name in filter(_ASIDE.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):  # gone, or another user's
                lock = os.open(folder / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if take(lock):
                        shutil.rmtree(folder / name)
                finally:
                    os.close(lock)
