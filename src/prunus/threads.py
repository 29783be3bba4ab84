"""How many threads torch and BLAS take: one for loops over small systems, else as asked for."""

import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunus.check import whole

__all__ = ["few", "keep_pinned", "pinned", "single_threaded", "sparing"]

MOST = max(1024, 4 * (os.cpu_count() or 1))  # beyond what a process may start, OpenMP ends it
SMALL = 2**16  # parameters; a batch of a thousand samples is a millisecond of one thread's work

P = ParamSpec("P")
T = TypeVar("T")


class _Thread(threading.local):
    """What this thread of the process has pinned, None at the start."""

    count: int | None = None


class _Blas:
    """BLAS libraries have one number for the process, or one for each thread.

    What stood when the first block began is what every thread goes back to, so that blocks of
    several threads, however they overlap, leave no limit behind. Of a library that is loaded inside
    a block, that is what it came with.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.open = 0
        self.before: dict[str, int] = {}  # of each library, by its file
        self.libraries: Any = None
        self.modules = 0

    def begin(self, count: int) -> None:
        with self.lock:
            self._limit(count)
            self.open += 1

    def keep(self, count: int) -> None:
        """The number of an open block, for libraries that have come since it began."""
        with self.lock:
            self._limit(count)

    def end(self, outer: int | None) -> None:
        with self.lock:
            self.open -= 1
            if outer is None:
                for library in self._loaded():
                    if library.filepath in self.before:
                        library.set_num_threads(self.before[library.filepath])
            else:
                self._limit(outer)
            if self.open == 0:
                self.before = {}

    def _limit(self, count: int) -> None:
        for library in self._loaded():
            self.before.setdefault(library.filepath, library.num_threads)
            library.set_num_threads(count)

    def _loaded(self) -> list[Any]:
        """This process's libraries. Looking for them takes milliseconds; imports bring them."""
        from threadpoolctl import ThreadpoolController

        if self.libraries is None or self.modules != len(sys.modules):
            self.libraries = ThreadpoolController().lib_controllers
            self.modules = len(sys.modules)
        found: list[Any] = self.libraries
        return found


_OWN, _BLAS = _Thread(), _Blas()


@contextmanager
def pinned(count: int | None) -> Iterator[None]:
    """So many threads for torch and for BLAS inside the block; the old numbers return.

    Args:
        count: at least 1; None leaves everything as it is.
    """
    if count is None or count == _OWN.count:
        yield
        return
    count = whole("threads", count, low=1, high=MOST)
    before, outer = torch.get_num_threads(), _OWN.count
    _BLAS.begin(count)
    _OWN.count = count
    try:
        torch.set_num_threads(count)
        yield
    finally:
        _OWN.count = outer
        _BLAS.end(outer)
        torch.set_num_threads(before)


def keep_pinned() -> None:
    """Libraries that were loaded inside the block around this keep to its number, too."""
    if _OWN.count is not None:
        _BLAS.keep(_OWN.count)


def few(model: Any) -> int | None:
    """1 for a network so small that a pool of threads costs more to wake than it saves, else None.

    That is one of vectors and matrices alone, with up to 65536 numbers: each sample takes so many
    multiply-adds. Beside other busy processes two threads took six times as long as one on such.
    Inside `pinned`, what that says stands. What is no network says nothing here.
    """
    if _OWN.count is not None or not isinstance(model, nn.Module):
        return None
    size = 0
    for p in model.parameters():
        if is_lazy(p) or p.dim() > 2:
            return None
        size += p.numel()
        if size > SMALL:
            return None
    return 1


def sparing(function: Callable[P, T]) -> Callable[P, T]:
    """A public function that runs networks: one thread for the small ones, as `few` says.

    Everything inside takes as many: what is measured and searched between two prunings, and the
    caller's own functions. `threads=`, where the caller gives it, is what is taken instead. The
    first argument is the network, or has it as `.model`. `Pruned.measured` takes the threads that
    the caller has set; a latency measured inside one of these says how many it had.
    """
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        given: Any = args[0] if args else kwargs.get(first)
        model = given if isinstance(given, nn.Module) else getattr(given, "model", None)
        asked: Any = kwargs.get("threads")
        with pinned(few(model) if asked is None else asked):
            return function(*args, **kwargs)

    return run


def single_threaded(function: Callable[P, T]) -> Callable[P, T]:
    """A function of many small systems, each solved by the calling thread alone.

    A pool of threads costs more to wake than a system of a few hundred unknowns takes, and where
    other processes run, threads that wait for each other make it hundreds of times slower.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with pinned(1):
            return function(*args, **kwargs)

    return run
