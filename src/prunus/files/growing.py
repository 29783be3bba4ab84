"""A folder that is made over hours: it lies aside, and takes its name when it is whole."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from prunus.files.lock import locked
from prunus.files.single import make_folder, sweep, sync_folder

__all__ = ["Growing", "growing"]


class Growing:
    """The folder aside.

    Attributes:
        folder: where it lies until it is whole: the final name with `.part`, if there is room.
        target: its final name.
    """

    def __init__(self, target: Path) -> None:
        self.target, self.folder = target, target.with_name(_aside(target.name))

    def forget(self, name: str) -> None:
        """Remove a file that is no longer needed; none is no error."""
        (self.folder / name).unlink(missing_ok=True)

    def tidy(self, prefix: str) -> None:
        """Remove what a killed process left: inner folders whose names begin so."""
        for inner in self.folder.glob(f"{prefix}*"):
            if inner.is_dir():
                shutil.rmtree(inner)

    def finish(self) -> Path:
        """Give the folder its name.

        Raises:
            FileExistsError: something took the name meanwhile.
        """
        if self.target.exists():
            raise FileExistsError(errno.EEXIST, "This name was taken meanwhile", str(self.target))
        sync_folder(self.folder)
        os.rename(self.folder, self.target)
        sync_folder(self.target.parent)
        return self.target


def _aside(name: str) -> str:
    """The name with `.part`, or by its hash where that would be too long for a file system."""
    longer = f"{name}.part"
    if len(os.fsencode(longer)) <= 255:
        return longer
    return f".prunus-{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}.growing"


@contextlib.contextmanager
def growing(target: str | os.PathLike[str]) -> Iterator[Growing]:
    """The folder aside for `target`, locked; what an earlier process left there is there.

    Raises:
        TimeoutError: another process works on it.
        OSError: it cannot be written.
    """
    final = Path(os.path.abspath(target))
    made = Growing(final)
    make_folder(made.folder)
    with locked(made.folder, wait=0):
        sweep(made.folder)
        yield made
    # The lock's file goes with the folder: its name changed, so it is removed there.
    with contextlib.suppress(OSError):
        (final / ".prunus.lock").unlink(missing_ok=True)
