"""The peak of a process's anonymous memory, sampled from outside; Linux only.

Maps of files are not in it: the system takes their pages back whenever it needs them.
"""

import gc
import os
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

PAUSE = 0.002  # seconds between two samples


def anonymous(process="self"):
    """Bytes of anonymous memory that a process holds."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc has no RssAnon; this needs Linux.")


def _child(pipe, prepare, work, args):
    given = prepare(*args)
    gc.collect()
    pipe.send(anonymous())
    pipe.recv()
    answer = work(*given)
    pipe.send(answer)


def anonymous_peak(prepare, work, *args):
    """(bytes before, bytes at the peak, the answer) of `work(*prepare(*args))` in a new process."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(theirs, prepare, work, args))
    child.start()
    theirs.close()
    rank = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):  # on a busy machine the samples would come too late
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    try:
        before = ours.recv()
        ours.send("go")
        peak = before
        while not ours.poll(PAUSE):
            peak = max(peak, anonymous(child.pid))
            time.sleep(PAUSE)
        return before, peak, ours.recv()
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, rank)
        child.join(10)
        child.kill()
        child.join()


def held_and_left(count, size):
    """Bytes that so many tensors take, and that stay once all but the last are freed."""
    import torch

    from prunus.host import few_leftovers, return_memory

    torch.zeros(2 * size, dtype=torch.uint8)  # from here on glibc serves such tensors from its heap
    with few_leftovers():
        with few_leftovers():
            pass
        before = anonymous()
        held = [torch.ones(size, dtype=torch.uint8) for _ in range(count)]
        taken = anonymous() - before
        last = held.pop()
        del held
        left = anonymous() - before
        del last
    return_memory()
    return taken, left
