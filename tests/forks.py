"""Two processes of one work, forked from the test's: they have its imports, which take seconds."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FORK = multiprocessing.get_context("fork")


def both(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(rank, *arguments)` for rank 0 in one process and for rank 1 in another."""
    faults = FORK.SimpleQueue()
    running = [
        FORK.Process(target=_begin, args=(faults, work, rank, *arguments)) for rank in range(2)
    ]
    for process in running:
        process.start()
    try:
        for process in running:
            process.join(300)
        said = "" if faults.empty() else faults.get()
        assert [process.exitcode for process in running] == [0, 0], said
    finally:
        for process in running:
            process.kill()


def _begin(faults: Any, work: Callable[..., None], rank: int, *arguments: Any) -> None:
    torch.set_num_threads(1)  # a pool of threads that the parent had is not there after a fork
    try:
        work(rank, *arguments)
    except BaseException:
        faults.put(traceback.format_exc())
        raise


def group(rank: int, folder: Path) -> None:
    """Meet the other process over gloo on loopback."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
