"""Where jobs run: in this process, in worker processes, or on a cluster (`clusters`).

An executor takes jobs (`submit`), gives back each as it ends (`as_completed`) and lets go of the
rest (`cancel`). The store gives the resume, not the engine: a job may begin twice.
"""

import contextlib
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "Ended",
    "Executor",
    "LocalExecutor",
    "SerialExecutor",
    "WorkerLost",
    "closing",
]


class WorkerLost(RuntimeError):
    """The process that ran a job has died; `deaths` counts the engine's own further attempts."""

    def __init__(self, words: str, deaths: int = 1) -> None:
        super().__init__(words)
        self.deaths = deaths


@dataclass(frozen=True)
class Ended:
    """A job that ended.

    Attributes:
        job: the number that `submit` gave.
        value: what the function returned; None with an error.
        error: what it raised, or `WorkerLost`.
    """

    job: int
    value: Any = None
    error: BaseException | None = None


@runtime_checkable
class Executor(Protocol):
    """The call of every executor.

    `slots` is how many jobs to have under way at once; `isolated` whether a job's death leaves
    this process alive.
    """

    @property
    def slots(self) -> int: ...
    @property
    def isolated(self) -> bool: ...
    def submit(self, function: Callable[..., Any], *arguments: Any) -> int: ...
    def as_completed(self) -> Iterator[Ended]: ...
    def cancel(self) -> None: ...


class SerialExecutor:
    """Jobs one after the other in this process."""

    slots = 1
    isolated = False

    def __init__(self) -> None:
        self._jobs: deque[tuple[int, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._count = 0

    def submit(self, function: Callable[..., Any], *arguments: Any) -> int:
        """Queue a job; its number."""
        self._count += 1
        self._jobs.append((self._count, function, arguments))
        return self._count

    def as_completed(self) -> Iterator[Ended]:
        """Run the queue; jobs submitted meanwhile are run too."""
        while self._jobs:
            job, function, arguments = self._jobs.popleft()
            try:
                ended = Ended(job, function(*arguments))
            except Exception as error:
                ended = Ended(job, error=error)
            yield ended

    def cancel(self) -> None:
        """Forget the queue."""
        self._jobs.clear()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _begin(parent: int, threads: int) -> None:
    """In a new worker: end with the parent, however it ended, and keep to so many threads.

    An interrupt from the terminal reaches every process; the parent ends the others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)


class LocalExecutor:
    """Worker processes of joblib's loky on this machine; a new pool replaces a broken one.

    When one worker dies, loky gives up the whole pool: every job under way ends as `WorkerLost`.
    """

    isolated = True

    def __init__(self, workers: int, threads: int) -> None:
        self.slots = workers
        self._threads = threads
        self._pool: Any = None
        self._futures: dict[Future[Any], tuple[int, Any]] = {}
        self._count = 0

    def submit(self, function: Callable[..., Any], *arguments: Any) -> int:
        """Hand a job to the pool; its number."""
        self._count += 1
        try:
            future = self._working_pool().submit(function, *arguments)
        except Exception:  # the pool broke between two jobs
            self._drop_pool(self._pool)
            future = self._working_pool().submit(function, *arguments)
        self._futures[future] = (self._count, self._pool)
        return self._count

    def as_completed(self) -> Iterator[Ended]:
        """Each job as it ends; jobs submitted meanwhile are waited for too."""
        from joblib.externals.loky.process_executor import (
            BrokenProcessPool,
            ShutdownExecutorError,
        )

        # The jobs of a broken pool end in any of these, by the moment at which it broke.
        gone = (BrokenProcessPool, ShutdownExecutorError, CancelledError)
        while self._futures:
            done, _ = wait(self._futures, return_when=FIRST_COMPLETED)
            for future in done:
                job, pool = self._futures.pop(future)
                try:
                    ended = Ended(job, future.result())
                except gone as error:
                    self._drop_pool(pool)
                    words = " ".join(str(error).split())[:300]
                    ended = Ended(job, error=WorkerLost(words or "The pool was given up."))
                except Exception as error:
                    ended = Ended(job, error=error)
                yield ended

    def cancel(self) -> None:
        """End the workers at once."""
        self._futures.clear()
        self._drop_pool(self._pool)

    def _working_pool(self) -> Any:
        if self._pool is None:
            from joblib.externals.loky import ProcessPoolExecutor

            # loky replaces a worker whose memory has grown, between two jobs; nothing is lost.
            warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
            pins = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            self._pool = ProcessPoolExecutor(
                max_workers=self.slots,
                initializer=_begin,
                initargs=(os.getpid(), self._threads),
                env=dict.fromkeys(pins, str(self._threads)),
            )
        return self._pool

    def _drop_pool(self, pool: Any) -> None:
        """Give up `pool`, unless a newer one has taken its place."""
        if pool is not None and pool is self._pool:
            self._pool = None
            pool.shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def closing(executor: Executor) -> Iterator[Executor]:
    """The executor, let go of at the end whatever happens."""
    try:
        yield executor
    finally:
        executor.cancel()
