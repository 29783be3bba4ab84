"""Disks that are full, at every place where a writer may find them so, or cannot be written."""

import ctypes
import errno
import os
import shutil
import sys

import pytest

from killing import FORK
from writers import WRITERS, only_its_own

PAGE = 4096
SLOW = ("report", "calibration")
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in WRITERS]
NEW_MOUNTS, PRIVATE, READ_ONLY, AGAIN = 0x20000, 0x44000, 1, 32


def on_a_disk_of_its_own(place, size, test):
    """Run a test in a child that has a small disk at `place`, which nobody else sees."""
    if sys.platform != "linux":
        pytest.skip("disks are mounted as Linux does it")
    reader, writer = FORK.Pipe(duplex=False)

    def child():
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"size={size}".encode()
        if (
            libc.unshare(NEW_MOUNTS)
            or libc.mount(b"none", b"/", None, PRIVATE, None)
            or libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, options)
        ):
            return writer.send(f"skip: {os.strerror(ctypes.get_errno())}")
        try:
            test(lambda: libc.mount(None, os.fsencode(place), None, READ_ONLY | AGAIN, None))
        except BaseException as error:
            writer.send(f"{type(error).__name__}: {error}")
            raise
        writer.send("")

    process = FORK.Process(target=child)
    process.start()
    writer.close()
    said = reader.recv()
    process.join()
    if said.startswith("skip"):
        pytest.skip(f"no disk can be mounted here ({said[6:]})")
    assert said == ""


def leave(place, pages):
    """Fill the disk but for so many pages."""
    filler = place / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(place).f_bavail - pages
    filler.write_bytes(bytes(PAGE * max(free, 0)))


def refusal(writer, made, place, version):
    try:
        writer.write(made, place, version)
    except OSError as error:
        return error
    return None


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_loses_nothing_wherever_it_is_met(tmp_path, name):
    """With room for no page more, for one, for two, …, until the write comes through.

    Rows are added until their page is full.
    """
    writer = WRITERS[name]
    made = writer.made()

    def test(read_only):
        version, refused = 0, 0
        writer.write(made, tmp_path, 0)
        for pages in range(0, 2000, 97 if name == "report" else 1):
            leave(tmp_path, pages if name != "lines" else 2 * (refused > 0))
            error = refusal(writer, made, tmp_path, version + 1)
            (tmp_path / "filler").unlink()
            assert writer.read(made, tmp_path) == version + (error is None)
            only_its_own(writer, tmp_path)
            if error is None:
                version += 1
                if refused:
                    return
                assert name == "lines"
                continue
            assert error.errno == errno.ENOSPC, error
            assert str(error.filename).startswith(str(tmp_path)), error
            refused += 1
        raise AssertionError("no room was enough")

    on_a_disk_of_its_own(tmp_path, "8m", test)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_cannot_be_written_is_named(tmp_path, name):
    writer = WRITERS[name]
    made = writer.made()

    def test(read_only):
        writer.write(made, tmp_path, 0)
        assert read_only() == 0
        with pytest.raises(OSError, match="Read-only file system") as caught:
            writer.write(made, tmp_path, 1)
        assert str(caught.value.filename).startswith(str(tmp_path))
        assert writer.read(made, tmp_path) == 0
        only_its_own(writer, tmp_path)

    on_a_disk_of_its_own(tmp_path, "8m", test)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_vanished_is_made_again(tmp_path, name):
    writer = WRITERS[name]
    made, place = writer.made(), tmp_path / "place"
    for _ in range(2):
        writer.write(made, place, 0)
        assert writer.read(made, place) == 0
        shutil.rmtree(place)
    writer.write(made, place, 0)
    only_its_own(writer, place)
