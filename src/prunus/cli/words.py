"""Errors of the library in the words of the command line."""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["of_system", "options_of", "shown"]

# What to do about a file or folder that the system refuses, by the number of its error.
CURES = {
    errno.ENOENT: "Look at the path",
    errno.ENOTDIR: "A part of the path is a file: name another path",
    errno.EISDIR: "It is a folder: name a file",
    errno.EEXIST: "Name another, or remove it",
    errno.ENAMETOOLONG: "Give it a shorter name",
    errno.ENOSPC: "Free some space, or name a place on another disk",
    errno.EDQUOT: "Free some space, or name a place on another disk",
    errno.EFBIG: "Raise the limit on the size of files, or name a place on another disk",
    errno.EACCES: "Look at its permissions, or name another",
    errno.EPERM: "Look at its permissions, or name another",
    errno.EROFS: "Name a place that can be written",
}


def of_system(error: OSError) -> str:
    """The system's error as a line: which file, what was wrong with it, what to do."""
    if error.strerror is None or error.filename is None:
        return str(error)
    parts = [str(error.strerror).rstrip("."), CURES.get(error.errno or 0, "")]
    name = error.filename
    place = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    return f"{place}: {'. '.join(filter(None, parts))}."


# What the library says of arguments that the command line has in another form.
FORMS = (
    ("data=, batches or a Calibration", "data="),
    ("relative=False", "--absolute"),
    ("text=, the path of a text file, or data=, token ids", "--text, a file of UTF-8 text"),
    ("evaluate=, a function model -> float or dict", "evaluate="),
)


def shown(message: str, options: Mapping[str, str]) -> str:
    """A message with `density`, density= and kind='sup' as --density and --kind sup.

    Args:
        message: as the library gives it.
        options: the command's, {parameter: as it is written}.
    """
    for form, other in FORMS:
        message = message.replace(form, other)

    def written(match: re.Match[str]) -> str:
        name = match[1]
        return match[0] if name not in options else " ".join([options[name], *match.groups()[1:]])

    plain = re.sub(r"`(\w+)`", written, message)
    valued = re.sub(r"\b(\w+)='(\w+)'", written, plain)
    return re.sub(r"\b(\w+)=(?=[\s.,;:)]|$)", written, valued)


def options_of(group: Any, arguments: Sequence[str]) -> dict[str, str]:
    """{parameter: option or argument} of the command that the arguments call.

    Args:
        group: the program.
        arguments: of the program, without its name.
    """
    command = group
    for word in arguments:
        inner = getattr(command, "commands", {}).get(word)
        if inner is None:
            if word.startswith("-"):
                continue
            break
        command = inner
    found = {}
    for parameter in getattr(command, "params", ()):
        long = [name for name in parameter.opts if name.startswith("--")]
        found[parameter.name] = long[0] if long else parameter.name.upper()
    return found
