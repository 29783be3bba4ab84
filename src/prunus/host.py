"""What a run ran on: the machine and the versions that decide its result."""

import functools
import os
import platform
import socket
from pathlib import Path
from typing import Any

__all__ = ["host_facts", "return_memory", "versions"]


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


def return_memory() -> None:
    """Give memory that was freed back to the system, where the C library holds on to it.

    glibc keeps what it serves below a threshold that grows with what was freed, so that a process
    that goes through blocks of a network holds some of each. Elsewhere nothing happens.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    import ctypes

    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
