"""Where jobs run: in this process, in worker processes, on a Ray or a Dask cluster.

An executor takes jobs (`submit`), gives back each as it ends (`as_completed`) and lets go of the
rest (`cancel`). The store gives the resume, not the engine: a job may run twice.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol

from prunus.check import unknown, whole

__all__ = ["EXECUTORS", "DaskExecutor", "Executor", "LocalExecutor", "RayExecutor",
           "SerialExecutor", "WorkerLost", "make_executor"]  # fmt: skip


class WorkerLost(RuntimeError):
    """The process that ran a job has died."""


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
    """In a new worker: end with the parent, however it ended, and keep to so many threads."""
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


class RayExecutor:
    """Ray Core tasks; Ray starts a lost task again by itself.

    Args:
        workers: jobs at once; also the CPUs of a cluster started here.
        threads: CPUs per job.
        address: of a running cluster; None starts one on this machine.
        options: further arguments of `ray.init`.
    """

    isolated = True

    def __init__(
        self, workers: int, threads: int, *, address: str | None = None, **options: Any
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = _need("ray")
        self.slots = workers
        self._threads = threads
        self._ray = ray
        self._references: dict[Any, int] = {}
        self._count = 0
        size = {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, **{**size, **options})

    def submit(self, function: Callable[..., Any], *arguments: Any) -> int:
        """Hand a job to the cluster; its number."""
        self._count += 1
        remote = self._ray.remote(num_cpus=self._threads, max_retries=3)(function)
        self._references[remote.remote(*arguments)] = self._count
        return self._count

    def as_completed(self) -> Iterator[Ended]:
        """Each job as it ends."""
        while self._references:
            done, _ = self._ray.wait(list(self._references), num_returns=1)
            for reference in done:
                job = self._references.pop(reference)
                try:
                    yield Ended(job, self._ray.get(reference))
                except self._ray.exceptions.WorkerCrashedError as error:
                    yield Ended(job, error=WorkerLost(str(error)))
                except self._ray.exceptions.RayTaskError as error:
                    yield Ended(job, error=error.cause)

    def cancel(self) -> None:
        """Stop what runs and leave the cluster."""
        for reference in self._references:
            self._ray.cancel(reference, force=True)
        self._references.clear()
        self._ray.shutdown()


class DaskExecutor:
    """Futures of `distributed`; Dask starts a lost task again by itself.

    Args:
        workers: worker processes of a cluster started here, one thread each.
        threads: torch threads per job.
        address: of a running scheduler; None starts one on this machine.
    """

    isolated = True

    def __init__(self, workers: int, threads: int, *, address: str | None = None) -> None:
        distributed = _need("distributed", extra="dask")
        self.slots = workers
        self._distributed = distributed
        self._cluster = None
        if address is None:
            self._cluster = distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, processes=True
            )
        self._client = distributed.Client(self._cluster or address)
        self._futures: dict[Any, int] = {}
        self._count = 0

    def submit(self, function: Callable[..., Any], *arguments: Any) -> int:
        """Hand a job to the cluster; its number."""
        self._count += 1
        future = self._client.submit(function, *arguments, pure=False, retries=3)
        self._futures[future] = self._count
        return self._count

    def as_completed(self) -> Iterator[Ended]:
        """Each job as it ends."""
        while self._futures:
            done, _ = self._distributed.wait(list(self._futures), return_when="FIRST_COMPLETED")
            for future in done:
                job = self._futures.pop(future)
                error = future.exception()
                if isinstance(error, self._distributed.scheduler.KilledWorker):
                    yield Ended(job, error=WorkerLost(str(error)))
                elif error is not None:
                    yield Ended(job, error=error)
                else:
                    yield Ended(job, future.result())

    def cancel(self) -> None:
        """Stop what runs and leave the cluster."""
        self._client.cancel(list(self._futures))
        self._futures.clear()
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


EXECUTORS = ("local", "ray", "dask")


def make_executor(
    name: str, *, workers: int = 1, threads: int = 1, address: str | None = None
) -> Executor:
    """The executor called `name`: local (one worker: this very process), ray or dask.

    Raises:
        ValueError: an unknown name, or an address without a cluster.
        ImportError: the engine is not installed; the message names the extra.
    """
    whole("workers", workers, low=1)
    whole("threads", threads, low=1)
    if name == "local":
        if address is not None:
            raise ValueError("The local executor has no address. Use --executor ray or dask.")
        return SerialExecutor() if workers == 1 else LocalExecutor(workers, threads)
    if name == "ray":
        return RayExecutor(workers, threads, address=address)
    if name == "dask":
        return DaskExecutor(workers, threads, address=address)
    raise unknown("executor", name, EXECUTORS)


@contextlib.contextmanager
def closing(executor: Executor) -> Iterator[Executor]:
    """The executor, let go of at the end whatever happens."""
    try:
        yield executor
    finally:
        executor.cancel()


def _need(module: str, extra: str | None = None) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(
            f"{module} is not installed; it comes with an extra: "
            f"pip install 'prunus[{extra or module}]'."
        ) from None
