"""A run that is stopped, however, goes on and gives the same bytes."""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections import Counter

import pytest
import torch
from tests.folder.conftest import llama
from tests.killing import working

from prunus.files import single
from prunus.folder import prune_folder


def contents(folder):
    """The bytes of every file, the account's times left out."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "prunus.json"}


class Stopped(BaseException):
    """As a kill: nothing that catches errors sees it."""


def stopping(monkeypatch, at):
    """Stop at the `at`-th renaming of a file to its final name, or as the next one begins."""
    count = [0]
    real = os.replace

    def replace(*args, **kwargs):
        count[0] += 1
        if count[0] > at:
            raise Stopped
        return real(*args, **kwargs)

    monkeypatch.setattr(single.os, "replace", replace)
    return count


@pytest.mark.parametrize("at", [1, 3, 5, 9])
def test_a_stopped_run_goes_on(source, ids, tmp_path, monkeypatch, at):
    whole = prune_folder(source, tmp_path / "whole", "wanda", 0.5, data=ids)
    with monkeypatch.context() as patch:
        stopping(patch, at)
        with pytest.raises(Stopped):
            prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    assert not (tmp_path / "out").exists()
    result = prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert result.layers == whole.layers
    # Journal, stream, then for each block the stream behind it, its weights, and the journal.
    assert result.resumed == max(0, (at - 2) // 3)


def test_other_settings_refuse_and_say_what_differs(source, ids, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 5)
        with pytest.raises(Stopped):
            prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    with pytest.raises(ValueError, match=r"other settings: density \(was '0.5', is '0.25'\)"):
        prune_folder(source, tmp_path / "out", "wanda", 0.25, data=ids)
    with pytest.raises(ValueError, match=r"other settings: text \("):
        prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids[:2])
    with pytest.raises(ValueError, match="holds an unfinished pruning"):
        prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids, resume=False)
    other = llama(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"other settings: source \("):
        prune_folder(other, tmp_path / "out", "wanda", 0.5, data=ids)


def test_a_finished_folder_is_answered_and_not_made_again(source, ids, tmp_path):
    first = prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    stamp = (tmp_path / "out" / "prunus.json").stat().st_mtime_ns
    again = prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    assert (again.layers, again.needs) == (first.layers, first.needs)
    assert (tmp_path / "out" / "prunus.json").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="exists already, pruned with other settings"):
        prune_folder(source, tmp_path / "out", "wanda", 0.25, data=ids)
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match=r"exists already\. Name another"):
        prune_folder(source, tmp_path / "mine", "wanda", 0.5, data=ids)


def test_a_full_disk_is_said_before_and_survived_later(source, ids, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr("prunus.folder.prune.shutil.disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="are needed for the output and the hidden states"):
            prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    with monkeypatch.context() as patch:
        count, real = [0], os.fsync

        def full(handle):
            count[0] += 1
            if count[0] == 12:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle)

        patch.setattr(single.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    prune_folder(source, tmp_path / "out", "wanda", 0.5, data=ids)
    prune_folder(source, tmp_path / "whole", "wanda", 0.5, data=ids)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


ROWS = torch.randint(0, 64, (12, 20), generator=torch.Generator().manual_seed(1))


def prune(src, out):
    return prune_folder(src, out, "sparsegpt", 0.5, data=list(ROWS.split(4)), progress=False)


def stage_of(out):
    """What a killed run left: blocks done, and how far the next one was; None if none was begun."""
    work = out.with_name(f"{out.name}.part")
    if out.exists() or not (work / "progress.json").is_file():
        return None
    done = len(json.loads((work / "progress.json").read_text())["blocks"])
    stream = (work / f"stream-{done + 1:05d}.safetensors").is_file()
    weights = (work / f"model-block-{done:05d}.safetensors").is_file()
    return done, stream, weights


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    """Every kill counted has hit a run under way; those that came too late begin a new folder."""
    src = llama(tmp_path / "src", blocks=16 if kills > 2 else 3, width=64, ffn=160)
    prune(src, tmp_path / "whole")
    draws, landed, folders = random.Random(0), [], 0

    def work(done):
        real, count = os.replace, 0

        def replace(*args, **kwargs):
            nonlocal count
            real(*args, **kwargs)
            count += 1
            done(count)

        single.os.replace = replace
        prune(src, tmp_path / f"out-{folders}")

    while len(landed) < kills:
        out = tmp_path / f"out-{folders}"
        files, pause = draws.randint(1, 4), draws.random() * 0.05
        with working(work) as (child, count):
            while count.value < files and child.is_alive():
                time.sleep(0.0005)
            time.sleep(pause)
            child.kill()
            child.join()
        stage = stage_of(out)
        if child.exitcode == -signal.SIGKILL and stage is not None:
            landed.append(stage)
        assert child.exitcode in (0, -signal.SIGKILL)
        if out.exists():
            assert contents(out) == contents(tmp_path / "whole")
            folders += 1
    prune(src, tmp_path / f"out-{folders}")
    for number in range(folders + 1):
        assert contents(tmp_path / f"out-{number}") == contents(tmp_path / "whole")
    assert not list(tmp_path.glob("*.part"))
    stages = Counter((stream, weights) for _, stream, weights in landed)
    print(f"{kills} kills in {folders + 1} folders, (stream, weights) written: {dict(stages)}")
    assert len({done for done, *_ in landed}) >= (8 if kills > 2 else 1)
