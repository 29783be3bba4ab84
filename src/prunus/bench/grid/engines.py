"""The executor of a name."""

from prunus.bench.grid.clusters import DaskExecutor, RayExecutor
from prunus.bench.grid.executors import Executor, LocalExecutor, SerialExecutor
from prunus.check import unknown, whole

__all__ = ["EXECUTORS", "make_executor"]

EXECUTORS = ("local", "ray", "dask")


def make_executor(
    name: str,
    *,
    workers: int | None = None,
    threads: int = 1,
    address: str | None = None,
    retries: int = 3,
) -> Executor:
    """The executor called `name`: local (one worker: this very process), ray or dask.

    Args:
        name: one of `EXECUTORS`.
        workers: jobs at once; None for all that the cluster at `address` takes, one without.
        threads: of every job.
        address: of a running cluster.
        retries: how often an engine may start a job again whose worker died.

    Raises:
        ValueError: an unknown name, or an address without a cluster.
        ImportError: the engine is not installed; the message names the extra.
        OSError: no cluster answers at `address`.
    """
    if workers is not None:
        whole("workers", workers, low=1)
    whole("threads", threads, low=1)
    if name not in EXECUTORS:
        raise unknown("executor", name, EXECUTORS)
    if name == "local":
        if address is not None:
            raise ValueError("The local executor has no address. Use --executor ray or dask.")
        return SerialExecutor() if workers in (None, 1) else LocalExecutor(workers, threads)
    made = RayExecutor if name == "ray" else DaskExecutor
    return made(workers, threads, address=address, retries=retries)
