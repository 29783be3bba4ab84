"""Several processes that prune one folder: each runs a share of the batches, sums are added."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from prunus.calibration.gather import Gatherer
from prunus.calibration.reduce import account_of, gathered, reduced_sums
from prunus.engine.statistics import Wanted
from prunus.folder.block_net import BlockNet
from prunus.folder.others import share_of
from prunus.scopes import Source

__all__ = ["Ranks"]

T = TypeVar("T")


class Ranks:
    """This process among others; alone where there is no group.

    All processes hold the same sums, bit for bit, and so prune alike without sending a weight. The
    first one writes.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, group: Any) -> None:
        """Join.

        Raises:
            RuntimeError: there is a group, and torch.distributed was not initialised.
        """
        self._group = group
        self.rank, self.size = 0, 1
        if group is not None:
            import torch.distributed as dist

            if not dist.is_available() or not dist.is_initialized():
                raise RuntimeError(
                    "`group` needs torch.distributed. Call init_process_group first, and pass "
                    "torch.distributed.group.WORLD."
                )
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def share(self, batches: Sequence[T]) -> list[T]:
        """This process's batches.

        Raises:
            ValueError: there are fewer batches than processes.
        """
        return share_of(batches, self.rank, self.size)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier(group=self._group)

    def same(self, value: T) -> T:
        """The first process's value."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        held = [value]
        first = 0 if self._group is None else dist.get_global_rank(self._group, 0)
        dist.broadcast_object_list(held, src=first, group=self._group)
        return held[0]

    def combine(self, gatherer: Gatherer) -> None:
        """Add the sums of all processes to this one's."""
        if self.size == 1:
            return
        layers = {name: gatherer.layers[name] for name in gatherer.sums}
        own = account_of(layers, gatherer.sums, {}, gatherer.statistics, "", 0, None)
        every = gathered(own, self._group)
        gatherer.sums.update(reduced_sums(gatherer.sums, every, gatherer.statistics, self._group))

    def beside(
        self, own: Source, net: BlockNet, calls: Mapping[str, int], wanted: Wanted
    ) -> Source:
        """The source itself: the others come here of themselves."""
        return own

    def behind(self, net: BlockNet) -> AbstractContextManager[None]:
        """Nothing: the others write theirs of themselves."""
        return nullcontext()
