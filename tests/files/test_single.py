"""Single files: whole or as they were, wherever the name leads."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest

from prunus import files
from prunus.files import lock

root = os.geteuid() == 0 if hasattr(os, "geteuid") else False


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("old")
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "middle").symlink_to(tmp_path / "real" / "a")
    assert files.write_text(tmp_path / "link", "new") == tmp_path / "link"
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "real" / "b")
    files.write_text(tmp_path / "dangling", "made")
    assert (tmp_path / "real" / "b").read_text() == "made"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="round") as caught:
        files.write_text(tmp_path / "round", "x")
    assert caught.value.errno == errno.ELOOP
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    files.write_text(tmp_path / "folder" / "c", "through a folder")
    assert names(tmp_path / "real") == ["a", "b", "c"]


def test_what_is_no_file_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        got = []
        reader = threading.Thread(target=lambda got=got: got.append(pipe.read_bytes()))
        reader.start()
        files.write_text(path, "through")
        reader.join()
        assert got == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        files.write_text(tmp_path, "x")
    assert names(tmp_path) == ["link", "pipe"]


@pytest.mark.skipif(not root, reason="only root makes devices")
def test_devices_are_written_to_even_by_root(tmp_path):
    """Not those of the system: a mistake in what is tested here would replace them."""
    for name, number in (("null", 3), ("full", 7)):
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(1, number))
    files.write_text(tmp_path / "null", "nowhere")
    with pytest.raises(OSError, match=r"No space left on device: '.*full'"):
        files.write_text(tmp_path / "full", "x" * 10)
    assert all(stat.S_ISCHR((tmp_path / name).stat().st_mode) for name in ("null", "full"))


def test_standard_output_is_gone_on_with(tmp_path):
    """Where it leads to a file too: neither replaced nor written from its beginning."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1" if sys.platform == "linux" else "/dev/fd/1")
    code = (
        f"from prunus.files import write_text; print('one'); "
        f"write_text({str(tmp_path / 'stdout')!r}, 'two\\n');"
        f"write_text('/dev/fd/1', 'three\\n'); print('four')"
    )
    expected = b"one\ntwo\nthree\nfour\n"
    own = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": own}  # the prunus that is tested
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    assert run.stdout == expected
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(command, stdout=out, check=True, env=environment)
    assert (tmp_path / "out").read_bytes() == expected


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_modes(tmp_path, mask):
    """A new file has what the umask leaves; an old one keeps its own."""
    seen, before = [], os.umask(mask)
    try:
        files.write_text(tmp_path / "new", "x")
        (tmp_path / "old").write_text("x")
        (tmp_path / "old").chmod(0o640)
        with files.new_file(tmp_path / "old") as file:
            seen += [stat.S_IMODE(os.fstat(file.fileno()).st_mode), os.umask(mask)]
            file.write(b"secret")
    finally:
        os.umask(before)
    assert seen == [0o640, mask]  # before a byte of it is written; nobody saw another umask
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640


@pytest.mark.skipif(root, reason="root may write everything")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o444)
    with pytest.raises(PermissionError, match=r"'.*a'"):
        files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_the_longest_names(tmp_path):
    for name in ("n" * 255, "ü" * 127):
        for text in ("first", "second"):
            files.write_text(tmp_path / name, text)
            assert (tmp_path / name).read_text() == text
    assert len(names(tmp_path)) == 2
    with pytest.raises(OSError, match="nnn") as caught:
        files.write_text(tmp_path / ("n" * 256), "x")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_error_anywhere_leaves_the_old_file(tmp_path, monkeypatch, call, error):
    path = files.write_text(tmp_path / "a", "old")

    def stopped(*args):
        raise error

    def write():
        with files.new_file(path) as file:
            file.write(b"new")
            if call == "write":
                stopped()

    with monkeypatch.context() as patch:
        if call != "write":
            patch.setattr(os, call, stopped)
        with pytest.raises(type(error)) as caught:
            write()
    if isinstance(error, OSError):
        assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_errors_of_others_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), files.new_file(tmp_path / "a"):
        open("elsewhere/x")  # noqa: SIM115
    assert names(tmp_path) == []


def test_a_file_larger_than_may_be_written(tmp_path):
    """The system's own refusal, in the middle of the bytes."""
    code = (
        "import resource, sys; from prunus.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))\n"
        "try: write_bytes(sys.argv[1], b'x' * (1 << 20))\n"
        "except OSError as error: print(error.filename)\n"
    )
    path = files.write_text(tmp_path / "a", "old")
    run = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (run.stdout, run.stderr) == (f"{path}\n", "")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_the_folder_is_synced_after_the_file_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *a: done.append("replace") or replace(*a))
    files.write_text(tmp_path / "new" / "newer" / "a", "x")
    assert done == ["folder", "folder", "file", "replace", "folder"]  # two folders are made


def test_what_the_dead_left_is_removed_and_the_living_are_left_alone(tmp_path):
    dead = tmp_path / ".prunus-00000000000000aa.part"
    dead.write_text("half")
    (tmp_path / ".prunus-mine.part").write_text("of the user")
    (tmp_path / ".prunus-00000000000000ab.part").symlink_to(tmp_path / ".prunus-mine.part")
    with files.new_file(tmp_path / "a") as first:
        first.write(b"first")
        assert not dead.exists()
        files.write_text(tmp_path / "b", "second")  # finds the first one's file and leaves it
    assert (tmp_path / "a").read_text() == "first"
    left = [".prunus-00000000000000ab.part", ".prunus-mine.part", "a", "b"]
    assert names(tmp_path) == left


@pytest.mark.skipif(root, reason="root may write everything")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(PermissionError, match=r"'.*/a'"):
            files.write_text(tmp_path / "a", "x")
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_that_vanishes(tmp_path):
    """While the file is written: the error names it, and no other folder is made."""
    folder = tmp_path / "gone"

    def write():
        with files.new_file(folder / "a") as file:
            file.write(b"x")
            shutil.rmtree(folder)

    with pytest.raises(FileNotFoundError, match=r"'.*/gone/a'"):
        write()
    assert not folder.exists()


def test_many_writers_of_one_file(tmp_path):
    """It is one of theirs at any time."""
    path, stop, seen = files.write_text(tmp_path / "a", "0" * 9000), threading.Event(), set()

    def write(digit):
        while not stop.is_set():
            files.write_text(path, digit * 9000)

    writers = [threading.Thread(target=write, args=(str(i),)) for i in range(4)]
    for writer in writers:
        writer.start()
    for _ in range(300):
        seen.add(path.read_text())
    stop.set()
    for writer in writers:
        writer.join()
    assert seen <= {str(i) * 9000 for i in range(4)}
    assert names(tmp_path) == ["a"]


def test_a_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    assert files.write_text(tmp_path / "a", "x").read_text() == "x"
    (tmp_path / ".prunus-00000000000000aa.part").touch()  # nobody can tell whether it is dead
    files.write_text(tmp_path / "a", "y")
    assert names(tmp_path) == [".prunus-00000000000000aa.part", "a"]
