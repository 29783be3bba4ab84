"""Pages whose code is run: their blocks of Python, and the text that stands below each."""

import contextlib
import io
import re
from pathlib import Path

import pytest

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.S | re.M)
MEASURED = re.compile(r"-?\d+\.\d+")


def fences(path: Path) -> list[tuple[str, str]]:
    """Each block of code as (language, text), indented ones moved to the margin."""
    text = path.read_text()
    return [
        (language, "".join(line.removeprefix(indent) for line in body.splitlines(True)))
        for indent, language, body in FENCE.findall(text)
    ]


def carry_out(path: Path, names: dict) -> None:
    """Run a page's Python in one namespace; what a block prints is what the next block says."""
    blocks = fences(path)
    for number, (language, code) in enumerate(blocks):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{path.name}, block {number}", "exec"), names)
        after = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
        if after[0] == "text":
            alike(printed.getvalue().strip(), after[1].strip())


def alike(given: str, promised: str) -> None:
    """The same words and whole numbers; measured ones near each other.

    A network that another machine trains with other rounding errs on other samples, so that what
    is measured of it may move; counts may not.
    """
    words = [MEASURED.sub("#", text).split() for text in (given, promised)]
    assert words[0] == words[1], f"\n{given}\nis not\n{promised}"
    numbers = [[float(n) for n in MEASURED.findall(text)] for text in (given, promised)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.25)
