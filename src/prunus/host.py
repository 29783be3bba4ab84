"""What a run ran on: the machine and the versions that decide its result."""

import functools
import os
import platform
import socket
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

__all__ = ["available_memory", "few_leftovers", "host_facts", "return_memory", "versions"]


@functools.cache
def _host() -> dict[str, Any]:
    import torch

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "name": socket.gethostname(),
        "system": platform.platform(),
        "processor": model,
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def host_facts() -> dict[str, Any]:
    """The machine's name, system, processor, cores and accelerator, and torch's threads."""
    import torch

    return {**_host(), "threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    """Of everything that decides a result."""
    import numpy
    import torch

    import prunus

    return {
        "prunus": prunus.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def available_memory(device: Any = None) -> int | None:
    """Bytes that new tensors on a `torch.device` can take; None where the system does not say."""
    import torch

    if device is not None and device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    facts = Path("/proc/meminfo")
    if (device is not None and device.type != "cpu") or not facts.exists():
        return None
    for line in facts.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def return_memory() -> None:
    """Give memory that was freed back to the system, where the C library holds on to it.

    glibc keeps what it serves below a threshold that grows with what was freed, so that a process
    that goes through blocks of a network holds some of each. Elsewhere nothing happens.
    """
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def few_leftovers() -> AbstractContextManager[None]:
    """While this is open, large tensors that are freed go back to the system at once.

    glibc serves what is below a threshold from a heap whose holes it keeps, and raises the
    threshold, up to 32 MB, whenever something larger is freed: how much a process then holds beyond
    what lives in it differs from run to run. Inside, the threshold stands at 1 MB. Afterwards it is
    at 32 MB, where glibc's own rule has it once a tensor of that size was freed.
    """
    return _Threshold()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
TUNABLES = "GLIBC_TUNABLES"
LOW, HIGH = 1 << 20, 32 << 20  # bytes; the higher one is glibc's largest


class _Threshold(AbstractContextManager[None]):
    """The process has one, so that the first to come lowers it and the last to go raises it."""

    lock = threading.Lock()
    inside = 0

    def __enter__(self) -> None:
        with self.lock:
            _Threshold.inside += 1
            if _Threshold.inside == 1:
                _set(LOW)
                return_memory()  # room in the heap is used before anything else

    def __exit__(self, *_: object) -> None:
        with self.lock:
            _Threshold.inside -= 1
            if _Threshold.inside == 0:
                _set(HIGH)


def _set(threshold: int) -> None:
    option = _libc("mallopt")
    told = "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get(
        TUNABLES, ""
    )
    if option is not None and not told:  # else the user has said what they want
        option(M_MMAP_THRESHOLD, threshold)
        option(M_TRIM_THRESHOLD, 2 * threshold)  # as glibc ties the two


@functools.cache
def _libc(name: str) -> Any:
    import ctypes

    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):  # another C library
        return None
