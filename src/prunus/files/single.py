"""Single files: written aside, flushed to disk, then renamed."""

import contextlib
import errno
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from prunus.files.lock import Handle, is_at, take, unsupported

__all__ = ["make_folder", "naming", "new_file", "sweep", "sync_folder", "write_bytes", "write_text"]

_ASIDE = re.compile(r"\.prunus-[0-9a-f]{16}\.part")
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.EBADF)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` as `new_file` does; the path."""
    with new_file(path) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8 to `path` as `new_file` does; the path."""
    return write_bytes(path, text.encode())


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to be written, which takes the place of `path` at the end of the block.

    It is on disk then, with its folder; on any error, interruption or kill before, what was there
    stands. Missing folders are made. Symbolic links are followed; a device, a pipe or a descriptor
    (`/dev/stdout`) is written to and stays what it is. The mode of an existing file is kept, a new
    one has what the umask leaves. What killed writers left aside in the folder is removed.

    Raises:
        OSError: the folder or an existing file cannot be written, or the disk is full; it names
            `path`.
    """
    with naming(path):
        special = _special(path)
        if special is not None:
            with io.BufferedWriter(special) as file:
                yield file
                file.flush()
                _sync(special.fileno())
            return
        target = Path(os.path.realpath(path))
        make_folder(target.parent)
        sweep(target.parent)
        aside: Path | None = None
        try:
            handle, aside = _aside(target.parent)
            _like_old(handle, target)
            with _closing(os.fdopen(handle.fileno(), "wb", closefd=False)) as file:
                yield file
            os.fsync(handle.fileno())
            if unsupported():  # there an open file cannot be renamed either
                handle.close()
            os.replace(aside, target)
            handle.close()
            sync_folder(target.parent)
        except BaseException:
            if aside is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside)
            raise


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the system that name no file, or the one aside, name `path`."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if error.errno is None or not (
            name is None or _ASIDE.fullmatch(os.path.basename(os.fsdecode(name)))
        ):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def _closing(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Flush at the end; after an error let go of what could not be written."""
    try:
        yield file
        file.flush()
    finally:
        with contextlib.suppress(OSError):
            file.close()


def _special(path: str | os.PathLike[str]) -> Handle | None:
    """The open file where `path` is no regular file but can be written to."""
    own = _descriptor(path)
    if own is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # what was printed before stands before
        return Handle(os.dup(own), "w")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    return None if stat.S_ISREG(mode) else Handle(path, "w")


def _descriptor(path: str | os.PathLike[str]) -> int | None:
    """The number of this process's descriptor that `path` means, such as /dev/stdout.

    Opened by name, a file behind it would be written from its beginning.
    """
    place = os.path.abspath(path)
    for _ in range(40):
        found = _DESCRIPTOR.fullmatch(place)
        if found or not os.path.islink(place):
            return int(found[1]) if found else None
        place = os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))
    return None


def _aside(folder: Path) -> tuple[Handle, Path]:
    """A new file, locked as long as its writer lives."""
    while True:
        aside = folder / f".prunus-{secrets.token_hex(8)}.part"  # short, whatever the target's name
        handle = Handle(aside, "x")  # the system takes the umask off its mode
        if take(handle) is not False and is_at(handle, aside):
            return handle, aside
        handle.close()  # another writer held it for one of a dead writer, and removed it


def _like_old(handle: Handle, target: Path) -> None:
    """Give the new file owner and mode of the old one, which must be one that may be written."""
    try:
        old = target.stat()
    except FileNotFoundError:
        return
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    new = os.fstat(handle.fileno())
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with contextlib.suppress(PermissionError):
            os.chown(handle.fileno(), old.st_uid, old.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(handle.fileno(), stat.S_IMODE(old.st_mode))


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made with its parents where it is missing, and on disk."""
    path = Path(folder)
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)
    return path


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left aside; what a living one writes is locked."""
    with contextlib.suppress(OSError):  # a folder that may be written and not listed
        for name in filter(_ASIDE.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):  # gone, or another user's
                _remove_dead(folder / name)


def _remove_dead(aside: Path) -> None:
    if aside.is_symlink():
        return
    with Handle(aside, "r+") as handle:
        if take(handle) and is_at(handle, aside):
            aside.unlink()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handles: list[int] = []
    try:
        # In one call of C, so that no interrupt comes between opening and keeping it.
        handles.extend(map(os.open, (folder,), (os.O_RDONLY | os.O_DIRECTORY,)))
        _sync(handles[0])
    finally:
        for handle in handles:
            os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # a pipe, a terminal, a file system that has no need
            raise
