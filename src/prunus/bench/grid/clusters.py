"""Jobs on a Ray or a Dask cluster: one started here, or one that runs already.

Workers read and write the same folders as this process, so a cluster of several machines needs a
shared disk for records, trained networks and data.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from prunus.bench.grid.executors import Ended, WorkerLost
from prunus.report.figure import require

__all__ = ["DaskExecutor", "RayExecutor"]

LOOPBACK = "127.0.0.1"
STORE = 100 << 20  # bytes of Ray's object store: jobs pass a few words to and fro


class RayExecutor:
    """Ray Core tasks; Ray starts a task again by itself when its worker or node is lost.

    Args:
        workers: jobs at once; also sizes a cluster started here. None takes the whole cluster.
        threads: CPUs per job.
        address: of a running cluster; None starts one on this machine.
        retries: how often Ray may start a lost task again.
        options: further arguments of `ray.init`.

    Raises:
        ImportError: Ray is not installed.
        OSError: no cluster answers.
        ValueError: a cluster started here would take work from anyone: Ray is too old for tokens,
            or they are switched off.
    """

    isolated = True

    def __init__(
        self,
        workers: int | None,
        threads: int,
        *,
        address: str | None = None,
        retries: int = 3,
        **options: Any,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning less
        if address is None and "ray" not in sys.modules:  # it reads this as it is imported
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        self._ray = ray = require("ray", "ray")
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._own = not ray.is_initialized()
        if self._own and address is None:
            _check_token(ray.__version__)
        if self._own:
            size = {} if address else {
                "num_cpus": (workers or 1) * threads,
                "object_store_memory": STORE,
                "include_dashboard": False,
                "_node_ip_address": LOOPBACK,
            }  # fmt: skip
            settings = {"log_to_driver": False, "logging_level": logging.ERROR, **size, **options}
            self._loud = _silence(ray)
            try:
                _knock(address)
                ray.init(address=address or "local", **settings)
            except Exception as error:
                raise _unreachable("Ray", address, error) from None
        capacity = int(ray.cluster_resources().get("CPU", 1)) // threads
        self.slots = workers or max(1, capacity)
        self._threads = threads
        self._retries = retries
        self._remote: dict[Any, Any] = {}
        self._references: dict[Any, int] = {}
        self._count = 0

    def submit(self, function: Callable[..., Any], *arguments: Any) -> int:
        """Hand a job to the cluster; its number."""
        if function not in self._remote:
            wrap = self._ray.remote(num_cpus=self._threads, max_retries=self._retries)
            self._remote[function] = wrap(function)
        self._count += 1
        self._references[self._remote[function].remote(*arguments)] = self._count
        return self._count

    def as_completed(self) -> Iterator[Ended]:
        """Each job as it ends; jobs submitted meanwhile are waited for too.

        Raises:
            ConnectionError: the cluster is gone.
        """
        faults = self._ray.exceptions
        lost = (faults.WorkerCrashedError, faults.NodeDiedError, faults.OutOfMemoryError)
        while self._references:
            done, _ = self._ray.wait(list(self._references), num_returns=1)
            for reference in done:
                job = self._references.pop(reference)
                try:
                    ended = Ended(job, self._ray.get(reference))
                except faults.RayTaskError as error:
                    ended = Ended(job, error=error.cause)
                except lost as error:
                    ended = Ended(job, error=WorkerLost(_line(error), self._retries + 1))
                except faults.RayError as error:
                    raise _gone("Ray", error) from None
                yield ended

    def cancel(self) -> None:
        """Stop what runs and leave the cluster; one that was started here ends."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            for reference in self._references:
                self._ray.cancel(reference, force=True)
        self._references.clear()
        if self._own:
            self._ray.shutdown()
            _silence(self._ray, self._loud)


class DaskExecutor:
    """Futures of `distributed`; Dask starts a job again by itself when its worker is lost.

    Guard the main module of a script with `if __name__ == "__main__":`, since the workers of a
    cluster started here import it.

    Args:
        workers: jobs at once; also the worker processes of a cluster started here, one thread
            each. None takes the whole cluster.
        threads: torch threads per job.
        address: of a running scheduler; None starts one on this machine.
        retries: how often Dask may start a job again; after the death of its worker a running
            scheduler's own `distributed.scheduler.allowed-failures` decides.

    Raises:
        ImportError: `distributed` is not installed.
        OSError: no scheduler answers.
    """

    isolated = True

    def __init__(
        self, workers: int | None, threads: int, *, address: str | None = None, retries: int = 3
    ) -> None:
        self._distributed = distributed = require("distributed", "dask")
        from dask import config

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # deaths are told by us
        self._cluster = None
        pins = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        settings = {
            "distributed.scheduler.allowed-failures": retries,
            "distributed.nanny.pre-spawn-environ": dict.fromkeys(pins, threads),
        }
        with config.set(settings):
            if address is None:
                self._cluster = distributed.LocalCluster(
                    host=LOOPBACK,
                    n_workers=workers or 1,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    memory_limit=0,  # a worker is never ended for its size
                    silence_logs=logging.CRITICAL,
                )
        try:
            self._client = distributed.Client(self._cluster or address, set_as_default=False)
        except (OSError, ValueError) as error:
            raise _unreachable("Dask", address, error) from None
        if self._cluster is not None:
            self._client.register_plugin(_deaf(distributed), name="prunus")
        capacity = sum(self._client.nthreads().values())
        self.slots = workers or max(1, capacity)
        self._retries = retries
        self._futures: dict[Any, int] = {}
        self._count = 0

    def submit(self, function: Callable[..., Any], *arguments: Any) -> int:
        """Hand a job to the cluster; its number."""
        self._count += 1
        future = self._client.submit(function, *arguments, pure=False, retries=self._retries)
        self._futures[future] = self._count
        return self._count

    def as_completed(self) -> Iterator[Ended]:
        """Each job as it ends; jobs submitted meanwhile are waited for too.

        Raises:
            ConnectionError: the cluster is gone.
        """
        killed = self._distributed.scheduler.KilledWorker
        while self._futures:
            with self._client.as_current():
                self._distributed.wait(list(self._futures), return_when="FIRST_COMPLETED")
            for future in [future for future in self._futures if future.done()]:
                job = self._futures.pop(future)
                if future.status == "cancelled" or future.status == "lost":
                    raise _gone("Dask", "the futures are lost")
                error = future.exception()
                if isinstance(error, killed):
                    yield Ended(job, error=WorkerLost(_line(error), error.allowed_failures + 1))
                elif error is not None:
                    yield Ended(job, error=error)
                else:
                    yield Ended(job, future.result())

    def cancel(self) -> None:
        """Stop what runs and leave the cluster; one that was started here ends."""
        with contextlib.suppress(OSError, RuntimeError):
            self._client.cancel(list(self._futures))
        self._futures.clear()
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def _check_token(version: str) -> None:
    """Refuse to start a Ray that runs whatever anyone on the network sends.

    Ray's processes listen on all addresses of the machine, whichever it is given.
    """
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    off = os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"
    if numbers < [2, 52] or off:
        why = "RAY_AUTH_MODE switches its tokens off" if off else f"Ray {version} knows no tokens"
        raise ValueError(
            f"Ray listens on all addresses of this machine, and {why}: anyone who reaches it "
            f"could run code here. {'Unset it' if off else 'Install ray>=2.52'}, or use "
            f"executor local."
        )


def _knock(address: str | None) -> None:
    """Whether anything listens at host:port; Ray would try for minutes.

    Raises:
        OSError: nothing does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def _silence(ray: Any, says: Callable[..., None] = lambda *told, **how: None) -> Any:
    """Change what prints Ray's messages to the driver; what did before.

    Deaths of workers and retries are printed to standard output even with `log_to_driver=False`.
    """
    worker = ray._private.worker
    before = getattr(worker, "print_to_stdstream", None)
    if before is not None:
        worker.print_to_stdstream = says
    return before


def _deaf(distributed: Any) -> Any:
    """A plugin with which workers leave Ctrl-C to this process, which ends them."""

    class Deaf(distributed.WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            del worker
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    return Deaf()


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _unreachable(engine: str, address: str | None, error: Exception) -> OSError:
    if address is None:
        return OSError(f"{engine} could not be started on this machine: {_line(error)}")
    token = ", set RAY_AUTH_MODE=token where it asks for a token" if engine == "Ray" else ""
    return OSError(
        f"No {engine} cluster answers at {address!r} ({_line(error)}). Start one{token}, or leave "
        f"--address out."
    )


def _gone(engine: str, error: object) -> ConnectionError:
    return ConnectionError(
        f"The {engine} cluster is gone ({_line(error)}). What was recorded is whole; start the "
        f"run again to go on."
    )
