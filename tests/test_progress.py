"""Boards of bars: what they show on a terminal, and that they are silent elsewhere."""

import functools
import io
import re
import sys

import pytest
from rich.console import Console

from prunus import progress


def shown(monkeypatch, width=100, **settings):
    """All that a board of two jobs draws on a terminal; a second passes before each end."""
    stream, now = io.StringIO(), [0.0]

    def console(file):
        assert file._stream is sys.stderr
        return Console(file=stream, force_terminal=True, width=width, _environ={})

    monkeypatch.setattr(progress, "Console", console)
    clocked = functools.partial(progress.Progress, get_time=lambda: now[0])
    monkeypatch.setattr(progress, "Progress", clocked)
    with progress.progress_board("cells", 3, **settings) as board:
        board.begin(1, "magnitude  density 0.5", 4.0)
        board.begin(2, "wanda[ls]  " + "x" * 200, None)
        now[0] = 1.0
        board.end(1, 1)
        now[0] = 2.0
        board.end(2, 0)
        board.begin(3, "last", 1.0)
        now[0] = 3.0
        board.end(3, 2)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


@pytest.mark.parametrize("width", [60, 100])
def test_a_board_shows_the_whole_and_every_job(monkeypatch, width):
    text = shown(monkeypatch, width, progress=True)
    assert "3/3" in text
    assert re.search("cells .*0:00:03, about 0:00:00 left", text)
    assert max(map(len, text.splitlines())) <= width


def test_a_job_shows_the_time_expected_of_it(monkeypatch):
    class Slow(progress.Progress):  # draw when a job begins, as time would do
        def add_task(self, *given, **named):
            task = super().add_task(*given, **named)
            self.refresh()
            return task

    monkeypatch.setattr(progress, "Progress", Slow)
    text = shown(monkeypatch, progress=True)
    assert re.search(r"magnitude  density 0.5 .*0 of about 4 s", text)
    assert re.search(r"wanda\[ls\]  x+….* 0 s", text)


def test_a_board_is_silent_where_there_is_no_terminal(monkeypatch, capfd):
    assert shown(monkeypatch, progress=False) == ""
    monkeypatch.undo()
    with progress.progress_board("cells", 1) as board:
        board.begin(1, "one", None)
        board.end(1, 1)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_that_goes_away_stops_no_work(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert list(progress.track(range(3), "counting", progress=True)) == [0, 1, 2]
    with progress.progress_board("counting", 2, progress=True) as board:
        board.begin(0, "one", None)
        board.end(0, 1)
