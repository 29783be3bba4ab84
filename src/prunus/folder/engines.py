"""Executors as a folder takes them: what they must do, and when there is something for them."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

__all__ = ["Engine", "check_engine", "told"]


@runtime_checkable
class Engine(Protocol):
    """Where jobs run; the executors of `prunus.bench.make_executor` are such."""

    @property
    def slots(self) -> int: ...
    def submit(self, function: Callable[..., Any], *arguments: Any) -> int: ...
    def as_completed(self) -> Iterator[Any]: ...
    def cancel(self) -> None: ...


def check_engine(engine: Any, *, apart: bool, whole: bool, alone: bool) -> None:
    """Refuse what is no executor, or what there is nothing to hand out of.

    Args:
        engine: where jobs run.
        apart: blocks do not wait for one another.
        whole: whole blocks are taken out.
        alone: one process calls.

    Raises:
        TypeError: it is no executor.
        ValueError: each block waits for the one before and there is one worker, whole blocks are
            compared, or the caller is one of several.
    """
    if not isinstance(engine, Engine):
        raise TypeError(
            f"`executor` must be one of prunus.bench.make_executor's, got "
            f"{type(engine).__name__}. Write make_executor('ray', workers=4), say."
        )
    if whole:
        raise ValueError(
            "Whole blocks are compared in one process, so that an executor has nothing to hand "
            "out. Leave `executor` out."
        )
    if not alone:
        raise ValueError("Give `executor` or `group`, not both.")
    if not apart and engine.slots < 2:
        raise ValueError(
            "With inputs='pruned' each block waits for the one before it, so that one worker has "
            "nothing to share. Give the executor workers=2 or more, which split the batches, or "
            "pass inputs='dense', which hands out blocks."
        )


def told(error: BaseException, index: int) -> BaseException:
    """What went wrong in a job for a block, as the caller is told."""
    if isinstance(error, ValueError | OSError):
        return error
    return RuntimeError(f"Block {index} was not pruned ({error}). The same call goes on.")
