"""Folders: one account, its files, and nobody else's."""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time

import pytest

from prunus import files
from prunus.files import lock

ACCOUNT = "own.json"


def save(folder, value, **parts):
    facts = {"value": value}
    return files.write_folder(folder, ACCOUNT, facts, {"weights": value.encode(), **parts})


def load(folder):
    facts, parts = files.read_folder(
        folder, ACCOUNT, lambda: json.loads((folder / ACCOUNT).read_text())
    )
    assert facts["value"].encode() == parts["weights"]
    return facts["value"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def part(value, name="weights"):
    return f"{name}-{hashlib.sha256(value).hexdigest()[:12]}.safetensors"


def test_a_saving_replaces_its_own_files_alone(tmp_path):
    theirs = ["weights-checkpoint01.safetensors", part(b"a user's", "weights"), "other.json"]
    for name in theirs:
        (tmp_path / name).write_text("a user's")
    save(tmp_path, "one", more=b"m")
    assert names(tmp_path) == sorted([*theirs, ACCOUNT, part(b"one"), part(b"m", "more")])
    save(tmp_path, "two")
    assert names(tmp_path) == sorted([*theirs, ACCOUNT, part(b"two")])
    assert load(tmp_path) == "two"
    assert all((tmp_path / name).read_text() == "a user's" for name in theirs)


def test_what_is_published_replaces_the_old_files_at_once(tmp_path):
    """A long saving publishes many times: the disk holds no more than the last."""
    with files.saving(tmp_path, ACCOUNT, lambda facts: [facts["name"]]) as made:
        for value in (b"one", b"two", b"three"):
            made.put(part(value), value)
            made.publish(json.dumps({"name": part(value)}))
            assert names(tmp_path) == sorted([lock.LOCK, ACCOUNT, part(value)])
    assert names(tmp_path) == sorted([ACCOUNT, part(b"three")])


@pytest.mark.parametrize(
    "account",
    [
        "",
        "[1]",
        "{",
        '{"files": {"weights": "checkpoint01"}}',
        '{"files": {"../weights": "' + "a" * 64 + '"}}',
        '{"files": ["weights"]}',
        '{"files": {"weights": 3}}',
        "[" * 100_000,
    ],
)
def test_a_foreign_account_names_nothing(tmp_path, account):
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / ACCOUNT).write_text(account)
    mine = [
        folder / "weights-checkpoint01.safetensors",
        tmp_path / f"weights-{'a' * 12}.safetensors",
    ]
    for path in mine:
        path.write_text("a user's")
    save(folder, "one")
    assert load(folder) == "one"
    assert all(path.exists() for path in mine)


def test_bytes_that_lie_there_are_not_written_again(tmp_path):
    save(tmp_path, "one")
    before = (tmp_path / part(b"one")).stat()
    save(tmp_path, "one")
    after = (tmp_path / part(b"one")).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (tmp_path / part(b"one")).write_bytes(b"two")  # damaged: as long, and not the same
    with pytest.raises(
        ValueError, match=r"is truncated or was changed: .* not the one in own\.json"
    ):
        load(tmp_path)
    save(tmp_path, "one")
    assert load(tmp_path) == "one"


@pytest.mark.parametrize("call", range(1, 4))
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_error_leaves_the_old_files_and_no_others(tmp_path, monkeypatch, call, error):
    """Before and after each of the three renames."""
    save(tmp_path, "one", more=b"m")
    replace, calls = os.replace, []
    for after in (False, True):
        before, old = names(tmp_path), load(tmp_path)
        calls.clear()

        def stopped(*args, after=after):
            calls.append(args)
            if after or len(calls) != call:
                replace(*args)
            if len(calls) == call:
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopped)
            with pytest.raises(error):
                save(tmp_path, "new" if after else "two", more=b"n" if after else b"o")
        if call == 3 and after:  # the account was in place
            assert load(tmp_path) == "new"
            assert names(tmp_path) == sorted([ACCOUNT, part(b"new"), part(b"n", "more")])
        else:
            assert load(tmp_path) == old
            assert names(tmp_path) == before


def test_what_killed_savers_made_is_removed(tmp_path):
    """Their names lie in the lock file that they left."""
    save(tmp_path, "one")
    (tmp_path / part(b"lost")).write_bytes(b"lost")
    (tmp_path / "kept.txt").write_text("a user's")
    lies = [part(b"lost"), part(b"one"), f"../{part(b'x')}", "kept.txt", ACCOUNT, 3, ["kept.txt"]]
    written = [json.dumps(name) for name in lies]
    (tmp_path / lock.LOCK).write_text("\n".join([*written, '"kept.t', "kept.txt", "[" * 9999]))
    (tmp_path.parent / part(b"x")).write_text("a user's")
    assert load(tmp_path) == "one"
    save(tmp_path, "two")
    assert names(tmp_path) == sorted([ACCOUNT, part(b"two"), "kept.txt"])
    assert (tmp_path.parent / part(b"x")).exists()
    (tmp_path / lock.LOCK).write_bytes(b"\xff\n\n")
    save(tmp_path, "three")
    assert names(tmp_path) == sorted([ACCOUNT, part(b"three"), "kept.txt"])


def test_two_savers_wait_for_each_other_and_say_so(tmp_path):
    def save_twice():
        for i in range(6):
            save(tmp_path, f"{threading.get_ident()} {i}")

    savers = [threading.Thread(target=save_twice) for _ in range(3)]
    for saver in savers:
        saver.start()
    seen = 0
    while any(saver.is_alive() for saver in savers):
        if (tmp_path / ACCOUNT).exists():
            load(tmp_path)
            seen += 1
    assert seen > 0
    assert load(tmp_path).endswith(" 5")
    assert len(names(tmp_path)) == 2
    with (
        files.locked(tmp_path),
        pytest.raises(TimeoutError, match="Another process is saving"),
        files.saving(tmp_path, ACCOUNT, lambda facts: (), wait=0),
    ):
        pass
    assert len(names(tmp_path)) == 2


def save_often(folder, name, stop):
    count = 0
    while not stop.is_set():
        save(folder, f"{name} {count} " + "x" * 200_000, more=f"{name}{count}".encode())
        count += 1


def test_readers_never_see_half_a_saving(tmp_path):
    """Two processes save without a pause, and every load succeeds."""
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    savers = [context.Process(target=save_often, args=(tmp_path, n, stop)) for n in "ab"]
    for saver in savers:
        saver.start()
    while not (tmp_path / ACCOUNT).exists():
        time.sleep(0.01)
    seen = {load(tmp_path) for _ in range(300)}
    stop.set()
    for saver in savers:
        saver.join()
        assert saver.exitcode == 0
    assert len(seen) > 1
    load(tmp_path)
    assert len(names(tmp_path)) == 3


def test_missing_files_are_said_once_the_account_stands(tmp_path):
    save(tmp_path, "one")
    (tmp_path / part(b"one")).unlink()
    with pytest.raises(FileNotFoundError, match=r"weights-.*\.safetensors is missing"):
        load(tmp_path)
    (tmp_path / ACCOUNT).write_text('{"value": "one", "files": {"weights": "../../secret"}}')
    with pytest.raises(ValueError, match=r"own\.json: `files` must be a table"):
        load(tmp_path)


def test_a_folder_that_vanishes_is_said_and_not_half_made(tmp_path):
    folder = tmp_path / "net"
    save(folder, "one")

    def vanishing():
        with files.saving(folder, ACCOUNT, lambda facts: ()) as made:
            made.put(part(b"a"), b"a")
            shutil.rmtree(folder)
            made.put(part(b"b"), b"b")
            made.publish("{}")

    with pytest.raises(FileNotFoundError, match=r"taken away while it was saved: '.*net'"):
        vanishing()
    assert not (folder / ACCOUNT).exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", ACCOUNT])
def test_names_in_a_folder_are_plain(tmp_path, name):
    with (
        files.saving(tmp_path, ACCOUNT, lambda facts: ()) as made,
        pytest.raises(ValueError, match="No file of this folder may be called"),
        made.open(name),
    ):
        pass


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "take", lambda handle: None)
    with pytest.warns(UserWarning, match="Save there from one process at a time"):
        save(tmp_path, "one")
    assert load(tmp_path) == "one"
    assert len(names(tmp_path)) == 2
