"""What a block is told of the processes that run other batches through it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar, runtime_checkable

from prunus.calibration.gather import Gatherer
from prunus.engine.statistics import Wanted
from prunus.folder.block_net import BlockNet
from prunus.scopes import Source

__all__ = ["Others", "share_of", "suffix_of"]

T = TypeVar("T")


@runtime_checkable
class Others(Protocol):
    """Processes each of which runs a share of the batches through every block.

    Attributes:
        rank: of this process.
        size: how many there are, this one among them.
    """

    rank: int
    size: int

    def share(self, batches: Sequence[T]) -> list[T]:
        """This process's batches."""
        ...

    def wait(self) -> None:
        """Until all processes are here."""
        ...

    def same(self, value: T) -> T:
        """The first process's value."""
        ...

    def beside(
        self, own: Source, net: BlockNet, calls: Mapping[str, int], wanted: Wanted
    ) -> Source:
        """This process's source of a block, beside which the others gather the same of theirs.

        Args:
            own: the source.
            net: the block that is being pruned; dense yet.
            calls: how often each of its layers is called in a pass, in order of execution.
            wanted: statistics.
        """
        ...

    def combine(self, gatherer: Gatherer) -> None:
        """Add the sums of all processes to this one's, in the order of their ranks."""
        ...

    def behind(self, net: BlockNet) -> AbstractContextManager[None]:
        """While this is open, every process writes the stream behind a block; then all have."""
        ...


def share_of(batches: Sequence[T], rank: int, size: int) -> list[T]:
    """The batches of one of so many processes.

    Raises:
        ValueError: there are fewer batches than processes.
    """
    if batches and len(batches) < size:
        raise ValueError(
            f"{size} processes need as many batches, got {len(batches)}. Give more "
            f"samples, or smaller batches."
        )
    return list(batches[rank::size])


def suffix_of(rank: int, size: int) -> str:
    """Of the names of a process's files, where several keep theirs in one folder."""
    return "" if size == 1 else f"-rank-{rank:03d}"
