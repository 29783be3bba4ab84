"""Writers that are interrupted (Ctrl-C) at random moments of the same process."""

import os
import random
import signal
import threading
import time

import pytest

from writers import WRITERS, only_its_own

# Python's own files, interrupted as they are opened, are closed by their collector, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
NAMES = ("single", "folder", "lines", "records")


class Interrupter:
    """Sends this process's main thread a signal after a while; it raises KeyboardInterrupt.

    Unless the block has ended by then.
    """

    def __init__(self):
        self.armed, self.hits = False, 0
        self.before = signal.signal(signal.SIGUSR1, self.raised)

    def raised(self, number, frame):
        if self.armed:
            self.armed = False
            self.hits += 1
            raise KeyboardInterrupt

    def call(self, action, seconds):
        def send():
            time.sleep(seconds)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            self.armed = True
            action()
            self.armed = False
        except KeyboardInterrupt:
            return True
        finally:
            sender.join()
        return False

    def close(self):
        signal.signal(signal.SIGUSR1, self.before)


@pytest.fixture
def interrupter():
    made = Interrupter()
    yield made
    made.close()


def interrupted(place, interrupter, name, times):
    writer = WRITERS[name]
    made = writer.made()
    writer.write(made, place, 0)
    begun = time.monotonic()
    for last in range(1, 6):
        writer.write(made, place, last)
    pace = (time.monotonic() - begun) / 5
    draws = random.Random(0)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(times):
        version = last + 1
        interrupter.call(
            lambda version=version: writer.write(made, place, version), draws.uniform(0, pace)
        )
        found = writer.read(made, place)
        assert found in (last, version)
        last = found
    assert interrupter.hits > 0
    assert len(os.listdir("/proc/self/fd")) == descriptors  # and with them every lock
    writer.write(made, place, last + 1)
    assert writer.read(made, place) == last + 1
    only_its_own(writer, place)


@pytest.mark.parametrize("name", NAMES)
def test_interrupts_leave_one_version_and_nothing_open(tmp_path, interrupter, name):
    interrupted(tmp_path, interrupter, name, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_interrupts(tmp_path, interrupter, name):
    interrupted(tmp_path, interrupter, name, 300 if name == "records" else 2000)  # a file each
    print(f"{name}: {interrupter.hits} interrupts")
