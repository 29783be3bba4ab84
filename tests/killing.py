"""Processes that are killed: at every call to the system in turn, and at random moments."""

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from prunus.files.lock import Handle

CALLS = ("open", "write", "pwrite", "fsync", "ftruncate", "replace", "unlink", "close", "mkdir")
WRITING = ("write", "pwrite")
FORK = multiprocessing.get_context("fork")


def at_every_call(action: Callable[[], None], stride: int = 1) -> Iterator[str]:
    """Run `action` in children that are killed before and after their first call, their second, …

    With a stride only at every so manieth call.

    Yields which call it was, after each death; ends when a child comes through. A call that writes
    is also torn: half of its bytes are written.
    """
    for number in itertools.count(1, stride):
        name = ""
        for when in ("before", "torn", "after"):
            if when == "torn" and name not in WRITING:
                continue
            reader, writer = FORK.Pipe(duplex=False)
            child = FORK.Process(target=_run, args=(action, number, when, writer))
            child.start()
            writer.close()
            said = ""
            try:
                said = reader.recv()
            except EOFError:
                raise AssertionError("the child died of something else") from None
            finally:
                child.join()
                reader.close()
            if child.exitcode == 0:
                return
            assert child.exitcode == -signal.SIGKILL, said
            name = said.split()[1]
            yield said


def _run(action, number, when, writer):
    count = 0
    here = os.getpid()

    def wrapped(name, real):
        def call(*args, **options):
            nonlocal count
            if os.getpid() != here:
                return real(*args, **options)
            count += 1
            if count != number:
                return real(*args, **options)
            if when == "torn":
                real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
            elif when == "after":
                with suppress(OSError):  # it failed, as a folder that is there is not made
                    real(*args, **options)
            writer.send(f"{when} {name} (call {number})")
            os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))
    for name in ("__init__", "close"):  # which open and close files in C
        setattr(Handle, name, wrapped(name, getattr(Handle, name)))
    try:
        action()
    finally:
        count = -(10**9)
        writer.send(f"came through {number}")


@contextmanager
def working(work: Callable[[Callable[[int], None]], None]) -> Iterator:
    """A child that works until it is killed; it says how far it is by calling `done(count)`."""
    count = FORK.Value("q", 0)

    def run():
        torch.set_num_threads(1)  # a pool of threads that the parent had is not there after a fork
        work(lambda value: setattr(count, "value", value))

    child = FORK.Process(target=run)
    child.start()
    try:
        yield child, count
    finally:
        child.kill()
        child.join()


def at_random(
    work: Callable[[Callable[[int], None]], None], kills: int, seed: int = 0
) -> Iterator[int]:
    """Kill -9 children at random moments of their work; yields how far each had said to be.

    A kill falls within about two steps of the child after its first one.
    """
    draws = random.Random(seed)
    pace = 0.05
    for _ in range(kills):
        begun = time.monotonic()
        with working(work) as (child, count):
            while count.value == 0 and child.is_alive():
                time.sleep(0.0005)
            pace = 0.5 * pace + 0.5 * min(time.monotonic() - begun, 1.0)
            end = time.monotonic() + draws.uniform(0, 2 * pace)
            while time.monotonic() < end and child.is_alive():
                time.sleep(0.0002)
            child.kill()
            child.join()
            assert child.exitcode == -signal.SIGKILL, "it came to an end by itself"
            yield count.value
