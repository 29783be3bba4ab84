"""Peak memory of a piece of work above what the process held before it; Linux only."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; this needs Linux.")


def _measured(pipe: Any, prepare: Callable[..., Any], work: Callable[..., Any], args: Any) -> None:
    from time import process_time

    given = prepare(*args)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, begun = _status("VmRSS"), process_time()
    answer = work(*given)
    pipe.send((_status("VmHWM") - before, process_time() - begun, answer))


def peak_of(
    prepare: Callable[..., Any], work: Callable[..., Any], *args: Any
) -> tuple[int, float, Any]:
    """Bytes above the start, seconds of processor time, and the answer of `work(*prepare(*args))`.

    Runs in a fresh process; `prepare` is not counted.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_measured, args=(theirs, prepare, work, args))
    child.start()
    theirs.close()
    found: tuple[int, float, Any] = ours.recv()
    child.join()
    return found
