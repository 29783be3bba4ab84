"""Folders that get their name once they are whole."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from prunus.files import Scratch, new_folder


def test_a_folder_is_there_whole(tmp_path):
    with new_folder(tmp_path / "a" / "net") as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "one").write_text("1")
        assert not (tmp_path / "a" / "net").exists()
    assert (tmp_path / "a" / "net" / "inner" / "one").read_text() == "1"
    assert os.listdir(tmp_path / "a") == ["net"]
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as aside:
        (aside / "one").write_text("1")
    assert os.listdir(tmp_path / "empty") == ["one"]


def test_nothing_is_there_after_an_error(tmp_path):
    def write():
        with new_folder(tmp_path / "net") as aside:
            (aside / "one").write_text("1")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write()
    assert os.listdir(tmp_path) == []


def test_what_is_there_stays(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for name in ("file", "folder"):
        with (
            pytest.raises(FileExistsError, match="Give a new or an empty folder"),
            new_folder(tmp_path / name),
        ):
            pass
    assert (tmp_path / "folder" / "mine").read_text() == "mine"


def test_what_a_killed_writer_left_goes_and_a_living_ones_stays(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(prunus.__file__).parents[1])!r})\n"
        f"from prunus.files import new_folder\n"
        f"with new_folder({str(tmp_path / 'other')!r}) as aside:\n"
        f"    (aside / 'one').write_text('1'); print('ready', flush=True); sys.stdin.read()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"ready\n"
    with new_folder(tmp_path / "first"):
        pass
    assert len(os.listdir(tmp_path)) == 2  # the living writer's folder aside
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdin.close()
    writer.stdout.close()
    with new_folder(tmp_path / "second"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]


def test_a_scratch_folder_goes_with_its_process(tmp_path):
    """Closed, forgotten, or killed: then the next one removes it, and leaves what lives."""
    first = Scratch(tmp_path)
    (first.path / "a").write_text("1")
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(prunus.__file__).parents[1])!r})\n"
        f"from prunus.files import Scratch\n"
        f"kept = Scratch({str(tmp_path)!r}); (kept.path / 'a').write_text('1')\n"
        f"os.kill(os.getpid(), 9)\n"
    )
    dead = subprocess.run([sys.executable, "-c", code], check=False).returncode
    assert dead == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / "prunus-mine.scratch").mkdir()
    second = Scratch(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(
        [first.path.name, second.path.name, "prunus-mine.scratch"]
    )
    second.close()
    second.close()
    assert not second.path.exists()
    path = first.path
    assert (path / "a").read_text() == "1"
    del first
    assert not path.exists()
    del path
