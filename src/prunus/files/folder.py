"""Folders of files that belong together: the account that names them is replaced last."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from prunus.files.lock import LOCK, Handle, is_at, locked
from prunus.files.single import make_folder, naming, new_file, sweep, sync_folder, write_text

__all__ = ["Saving", "named_parts", "part_names", "read_folder", "saving", "write_folder"]

Facts = Mapping[str, Any]
Named = Callable[[Facts], Collection[str]]
_HASH = re.compile("[0-9a-f]{64}")
_PART = re.compile("[a-z]+")
_FORM = re.compile(r"[a-z]+-[0-9a-f]{12}\.safetensors")  # of the names that `write_folder` gives


class Saving:
    """The files of one saving; they count once `publish` has replaced the account."""

    def __init__(
        self,
        folder: Path,
        account: str,
        named: Named,
        form: re.Pattern[str],
        journal: Handle,
    ) -> None:
        self.folder = folder
        self._account = folder / account
        self._named = named
        self._form = form
        self._journal = journal
        self._ours = self._written()  # what a saver put down who was killed
        self.tidy()
        self._note(self._kept())

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A new file of the folder to be written, as `new_file` opens one.

        Raises:
            ValueError: the name has not the form of the folder's files.
        """
        if not self._form.fullmatch(name):
            raise ValueError(f"No file of this folder may be called {name!r}.")
        if not (self.folder / name).exists():  # or it is not ours to remove
            self._note({name})
        with new_file(self.folder / name) as file:
            yield file

    def put(self, name: str, data: bytes) -> None:
        """Write a whole file; one that lies there with these bytes is left as it is."""
        path = self.folder / name
        if not (path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data):
            with self.open(name) as file:
                file.write(data)

    def publish(self, text: str) -> None:
        """Replace the account; then the files go that the old one named and this one does not.

        Raises:
            FileNotFoundError: the folder was taken away meanwhile.
        """
        if not is_at(self._journal, self.folder / LOCK):
            raise FileNotFoundError(
                errno.ENOENT, "The folder was taken away while it was saved", str(self.folder)
            )
        write_text(self._account, text)
        self.tidy()

    def tidy(self) -> None:
        """Remove those of our own files that the account does not name."""
        for name in self._ours - self._kept():
            path = self.folder / name
            if path.is_file():
                path.unlink(missing_ok=True)
        self._ours &= self._kept()
        sync_folder(self.folder)

    def _kept(self) -> set[str]:
        """What the account names that stands now."""
        try:
            facts = json.loads(self._account.read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return set()
        try:
            return set(filter(self._form.fullmatch, self._named(facts)))
        except (ValueError, TypeError, KeyError, AttributeError):  # not ours: it names nothing
            return set()

    def _written(self) -> set[str]:
        """The names in the lock file, a line each; a torn one had not been used yet."""
        self._journal.seek(0)
        names: list[object] = []
        for line in self._journal.readall().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                names.append(json.loads(line))
        return {n for n in names if isinstance(n, str) and self._form.fullmatch(n)}

    def _note(self, names: Collection[str]) -> None:
        """Put names down that may be left over, before they are, for whoever comes after a kill."""
        new = sorted(set(names) - self._ours)
        if new:
            self._ours.update(new)
            # Behind a torn line of a dead one too. Nothing that stands there is lost meanwhile.
            text = "".join(f"\n{json.dumps(name)}\n" for name in new)
            with naming(self.folder):
                os.write(self._journal.fileno(), text.encode())
                os.fsync(self._journal.fileno())


@contextlib.contextmanager
def saving(
    folder: str | os.PathLike[str],
    account: str,
    named: Named,
    *,
    form: re.Pattern[str] = _FORM,
    wait: float = 60.0,
) -> Iterator[Saving]:
    """Save files that belong together into `folder`: all of them, or none.

    Files get names that the standing account does not use; `Saving.publish` replaces the account,
    a JSON file that names them. At any error or kill before, the old ones stand. Removed is only
    what the old account named, and what this saving, or one that was killed, had made. Savers wait
    for each other; readers (`read_folder`) need not.

    Args:
        folder: made if missing.
        account: the name of the JSON file.
        named: the files that an account names.
        form: of their names, which holds no separator. No file of another form is ever removed,
            whatever an account or a lock file says.
        wait: seconds to wait for another saver; 0 refuses at once.

    Raises:
        TimeoutError: another process is saving there.
        OSError: the folder cannot be written, or the disk is full.
    """
    target = make_folder(folder)
    with locked(target, wait=wait) as journal:
        sweep(target)
        made = Saving(target, account, named, form, journal)
        try:
            yield made
        finally:
            if target.is_dir():
                made.tidy()


def part_names(facts: Facts) -> dict[str, str]:
    """{part: its file's name} of an account that `write_folder` wrote: the name holds the content's
    hash, so that a new content never takes the place of an old one.

    Raises:
        ValueError: `files` is no table of hashes.
    """
    digests = facts.get("files", {})
    if not isinstance(digests, Mapping) or not all(
        isinstance(digest, str) and _HASH.fullmatch(digest) and _PART.fullmatch(part)
        for part, digest in digests.items()
    ):
        raise ValueError("`files` must be a table of parts and their hashes.")
    return {part: f"{part}-{digest[:12]}.safetensors" for part, digest in digests.items()}


def write_folder(
    folder: str | os.PathLike[str],
    account: str,
    facts: Facts,
    parts: Mapping[str, bytes],
    *,
    older: Named = lambda facts: (),
    form: re.Pattern[str] = _FORM,
) -> Path:
    """Save safetensors files and the account that names them; see `saving`.

    Args:
        folder: made if missing.
        account: the name of the JSON file.
        facts: what stands in it; `files` is added, {part: hash}.
        parts: {part: content}, each in a file `PART-HASH.safetensors`.
        older: names of files in accounts of older versions.
        form: of the names of all those files.
    """
    own = {**facts, "files": {part: hashlib.sha256(d).hexdigest() for part, d in parts.items()}}
    names = part_names(own)

    def all_named(facts: Facts) -> set[str]:
        return {*part_names(facts).values(), *older(facts)}

    with saving(folder, account, all_named, form=form) as made:
        for part, data in parts.items():
            made.put(names[part], data)
        made.publish(json.dumps(_as_json(own), indent=1) + "\n")
    return Path(folder)


def _as_json(value: Any) -> Any:
    """A value as JSON has it: numbers of any library as numbers, whatever else as its text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    number = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    return number if isinstance(number, bool | int | float) else str(value)


def named_parts(facts: Facts) -> dict[str, tuple[str, str]]:
    """{part: (its file's name, hash)} of an account that `write_folder` wrote."""
    return {part: (name, facts["files"][part]) for part, name in part_names(facts).items()}


def read_folder(
    folder: str | os.PathLike[str],
    account: str,
    read: Callable[[], dict[str, Any]],
    named: Callable[[Facts], Mapping[str, tuple[str, str]]] = named_parts,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The account of a folder and the files that it names, all of one saving.

    Another process may be saving: where a file is missing or another, the account is read again,
    and the files once more if it has changed.

    Args:
        folder: the folder.
        account: the name of the JSON file, for messages.
        read: reads and checks the account.
        named: {part: (file's name, hash)} of an account; as `write_folder` names them by default.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or was changed, or the account names none.
    """
    source = Path(folder)
    facts = read()
    while True:
        try:
            try:
                names = named(facts)
            except ValueError as error:
                raise ValueError(f"{source / account}: {error}") from None
            return facts, _contents(source, account, names)
        except (FileNotFoundError, ValueError):
            again = read()
            if again == facts:
                raise
            facts = again


def _contents(folder: Path, account: str, named: Mapping[str, tuple[str, str]]) -> dict[str, bytes]:
    with contextlib.ExitStack() as stack:
        files = {}
        for part, (name, _) in named.items():
            try:
                files[part] = stack.enter_context((folder / name).open("rb"))
            except (FileNotFoundError, IsADirectoryError):
                raise FileNotFoundError(
                    f"{folder / name} is missing. Give a folder that prunus saved whole."
                ) from None
        # All are open: a saver may take their names away now, not their bytes.
        found = {part: file.read() for part, file in files.items()}
    for part, (name, digest) in named.items():
        if hashlib.sha256(found[part]).hexdigest() != digest:
            raise ValueError(
                f"{folder / name} is truncated or was changed: its hash is not the one in "
                f"{account}. Save it again."
            )
    return found
