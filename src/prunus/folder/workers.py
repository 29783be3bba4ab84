"""Batches split over the workers of an executor, where each block waits for the one before it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from prunus.calibration.gather import Gatherer
from prunus.calibration.statistics import Source as Reading
from prunus.calibration.sums import Sums
from prunus.engine.statistics import Wanted, bare_layers
from prunus.folder.block_net import BlockNet
from prunus.folder.checkpoint import open_checkpoint
from prunus.folder.engines import Engine, told
from prunus.folder.hidden import Batch
from prunus.folder.order import Order
from prunus.folder.others import share_of, suffix_of
from prunus.folder.skeleton import Skeleton
from prunus.folder.sources import outputs_of, runs, source_of
from prunus.folder.streams import DENSE, Streams
from prunus.folder.tensors import write_tensors
from prunus.host import few_leftovers
from prunus.modes import copied
from prunus.scopes import Pass, Source, scope_sums

__all__ = ["Workers", "shares_of"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class _Share:
    """What a worker must know to run its batches through one block.

    Attributes:
        source: the folder that is pruned.
        folder: of the work.
        order: how.
        batches: of the worker.
        suffix: of the names of its files.
        index: of the block.
        calls: how often each layer is called in a pass; empty where none is pruned.
        state: the file of what the block has become; None where it is dense yet.
    """

    source: str
    folder: str
    order: Order
    batches: Sequence[Batch]
    suffix: str
    index: int
    calls: Mapping[str, int]
    state: str | None


def shares_of(engine: Engine, batches: Sequence[Batch]) -> int:
    """Over how many processes batches are split: a job for each but the first, which is ours."""
    return min(engine.slots, max(1, len(batches)))


class Workers:
    """Jobs that run the other shares of the batches, while this process runs the first.

    A worker holds on to nothing: for every scope of a block it reads the block and its share of the
    stream, and writes its sums to a file of the folder; for the stream behind the block likewise.
    Sums are added in the order of the shares, whichever was ready first.

    Attributes:
        rank: of this process, the first.
        size: how many shares there are.
    """

    def __init__(
        self, engine: Engine, size: int, *, source: Path, order: Order, batches: Sequence[Batch]
    ) -> None:
        """Nothing is handed out yet.

        Args:
            engine: runs the jobs, as many at once as shares but one.
            size: as `shares_of` says.
            source: the folder that is pruned.
            order: how; the files lie in its `scratch`.
            batches: all of them.
        """
        self.rank, self.size = 0, size
        self._engine, self._order, self._source = engine, order, source
        self._batches = [share_of(batches, rank, size) for rank in range(size)]
        self._jobs: dict[int, int] = {}  # the rank of each
        self._net: BlockNet | None = None  # whose layers' sums are asked for
        self._calls: Mapping[str, int] = {}
        self._turn = 0  # scopes of the block that have been asked for
        self._state: Path | None = None  # what the block has become, while jobs read it

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the names of the workers' files."""
        return tuple(suffix_of(rank, self.size) for rank in range(1, self.size))

    def share(self, batches: Sequence[T]) -> list[T]:
        """This process's batches."""
        return share_of(batches, self.rank, self.size)

    def wait(self) -> None:
        """No worker goes on by itself."""

    def same(self, value: T) -> T:
        """The value: one process decides."""
        return value

    def beside(
        self, own: Source, net: BlockNet, calls: Mapping[str, int], wanted: Wanted
    ) -> Source:
        """The source, beside which workers gather the same of their batches."""
        self._net, self._calls, self._turn = net, calls, 0

        def ask(names: Sequence[str], changed: bool) -> None:
            self._turn += 1
            if changed and self._order.paired:
                self._write_state(net)
            self._submit(net, _gather, lambda rank: (names, wanted, str(self._sums(net, rank))))

        return _Asking(own, ask)

    def combine(self, gatherer: Gatherer) -> None:
        """Add the workers' sums, layer by layer from their files."""
        from safetensors import safe_open

        net = self._net
        assert net is not None  # the sums are those of its layers
        opened: Any = safe_open
        for rank, counts in sorted(self._answers(net).items()):
            path = self._sums(net, rank)
            with opened(path, framework="pt") as file:
                for name, sums in gatherer.sums.items():
                    totals = {key: file.get_tensor(f"{name}/{key}") for key in sums.totals}
                    theirs = Sums(dict(counts[name]), totals)
                    gatherer.sums[name] = sums.merged(theirs, gatherer.statistics)
            path.unlink()

    @contextmanager
    def behind(self, net: BlockNet) -> Iterator[None]:
        """While this is open, workers write their shares of the stream behind a block."""
        if self._net is not net:  # none of its layers is pruned
            self._calls = {}
        self._write_state(net)
        self._submit(net, _pass_on, lambda rank: ())
        yield
        self._answers(net)

    def _submit(
        self, net: BlockNet, job: Callable[..., Any], more: Callable[[int], tuple[Any, ...]]
    ) -> None:
        for rank in range(1, self.size):
            share = _Share(
                source=str(self._source),
                folder=str(self._order.scratch),
                order=self._order,
                batches=self._batches[rank],
                suffix=suffix_of(rank, self.size),
                index=net.index,
                calls=self._calls,
                state=None if self._state is None else str(self._state),
            )
            self._jobs[self._engine.submit(job, share, *more(rank))] = rank

    def _answers(self, net: BlockNet) -> dict[int, Any]:
        """{rank: what its job returned}, when all have."""
        found: dict[int, Any] = {}
        for ended in self._engine.as_completed():
            if ended.error is not None:
                raise told(ended.error, net.index)
            found[self._jobs.pop(ended.job)] = ended.value
        if self._state is not None:
            self._state.unlink()
            self._state = None
        return found

    def _sums(self, net: BlockNet, rank: int) -> Path:
        # A job that outlives a killed run writes the same content under the same name.
        own = f"prunus-sums-{net.index:05d}-{self._turn:03d}{suffix_of(rank, self.size)}"
        return self._order.scratch / f"{own}.safetensors"

    def _write_state(self, net: BlockNet) -> None:
        path = self._order.scratch / f"prunus-state-{net.index:05d}-{self._turn:03d}.safetensors"
        tensors = net.state_dict()
        shapes = {key: (t.dtype, tuple(t.shape)) for key, t in tensors.items()}
        self._state = write_tensors(path, shapes, tensors.items())


class _Asking:
    """A source that lets the workers begin when it is read."""

    def __init__(self, own: Source, ask: Callable[[Sequence[str], bool], None]) -> None:
        """`ask(names, changed)` is called with the layers, and whether any has new values."""
        self._own, self._ask, self._changed = own, ask, False

    @property
    def paired(self) -> bool:
        """As of one's own."""
        return self._own.paired

    def passes(self, names: Sequence[str], *, outputs: bool = False) -> Iterator[Pass]:
        """The passes of this process, while the workers run theirs."""
        self._ask(names, self._changed)
        yield from self._own.passes(names, outputs=outputs)

    def changed(self, parameters: Sequence[str]) -> None:
        """These have new values."""
        self._changed = True
        self._own.changed(parameters)


@contextmanager
def _opened(share: _Share) -> Iterator[tuple[BlockNet, nn.Module, Any, Streams, Any]]:
    """The block as it is now, the dense one, their source, all streams, and the two that go in."""
    from safetensors.torch import load_file

    order, index = share.order, share.index
    skeleton = Skeleton(open_checkpoint(Path(share.source)))
    streams = Streams(
        skeleton=skeleton, batches=share.batches, folder=Path(share.folder), suffix=share.suffix
    )
    with few_leftovers(), ExitStack() as stack:
        net = stack.enter_context(skeleton.filled(index, order.device))
        dense = copied(net) if order.paired or order.alone else net
        if share.state is not None:
            net.load_state_dict(load_file(share.state))
        stream = streams.into(index)
        beside = streams.into(index, DENSE) if order.aim == "dense" else None
        source = None
        if share.calls:
            source = source_of(order, net, dense, share.calls, stream, beside, stack)
        yield net, dense, source, streams, (stream, beside)


def _gather(
    share: _Share, names: Sequence[str], wanted: Wanted, path: str
) -> dict[str, dict[Reading, int]]:
    """Write the sums of some layers to a file; how many vectors are in them."""
    with _opened(share) as (net, dense, source, _, _):
        base = bare_layers(dense, names)
        gatherer, _ = scope_sums(source, names, base=base, model=net, wanted=wanted)
        tensors = {
            f"{name}/{key}": total
            for name, sums in gatherer.sums.items()
            for key, total in sums.totals.items()
        }
        shapes = {key: (total.dtype, tuple(total.shape)) for key, total in tensors.items()}
        write_tensors(Path(path), shapes, tensors.items())
        return {name: dict(sums.counts) for name, sums in gatherer.sums.items()}


def _pass_on(share: _Share) -> None:
    """Write the stream behind the block, and the dense network's where it goes on beside."""
    order, index = share.order, share.index
    with _opened(share) as (net, _, source, streams, (stream, beside)):
        if source is None:
            after = runs(net, order, stream)
            dense_after = None if beside is None else runs(net, order, beside)
        else:
            after, dense_after = outputs_of(order, source, net, stream)
        streams.behind(index, after)
        if dense_after is not None:
            streams.behind(index, dense_after, DENSE)
