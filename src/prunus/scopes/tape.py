"""The calls of a forward pass that have finished, with the outputs from which they are answered."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus.scopes.keep import Keep
from prunus.scopes.trees import copied

__all__ = ["Done", "Kept", "Path", "Tape"]

Path = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Done:
    """A call that has finished.

    Attributes:
        module: what was called.
        path: the calls that were open around it.
        key: of its output among what is kept; None where the call must run again each time.
        children: None for a finished call; for an `nn.Sequential` that is under way, how many of
            its children have run, and the output is the last one's.
        inside: ids of the modules whose parameters the output depends on.
    """

    module: nn.Module
    path: Path
    key: int | None
    children: int | None
    inside: frozenset[int]


Tape = list[Done]  # of one pass, in the order in which its calls end


class Kept:
    """The outputs of finished calls, of all passes.

    Of modules in a chain, each of which alone reads the one before, only the last output is kept,
    and NaN in place of the others.
    """

    def __init__(self, keep: Keep, chained: Collection[int]) -> None:
        """Nothing yet.

        Args:
            keep: where outputs are kept.
            chained: ids of the modules of the chain.
        """
        self._keep, self._chained = keep, chained
        self._count = 0
        self._empty: dict[int, Any] = {}

    def put(
        self,
        tape: Tape,
        places: tuple[int, int],
        module: nn.Module,
        path: Path,
        output: Any,
        children: int | None,
        inside: frozenset[int],
    ) -> None:
        """Keep a finished call in place of those on the tape that it held; as `Done`."""
        start, end = places
        self.forget(tape, start, end)
        key = self._count = self._count + 1
        self._keep.put(key, copied(output))
        tape.insert(start, Done(module, path, key, children, inside))
        if id(module) in self._chained:
            before = (d for d in reversed(tape[:start]) if id(d.module) in self._chained)
            self._thin(next(before, None), path)

    def get(self, key: int) -> Any:
        """A copy of an output; NaN where nobody should read it again."""
        return copied(self._empty[key] if key in self._empty else self._keep.get(key))

    def forget(self, tape: Tape, start: int, end: int | None = None) -> None:
        """Take calls off a tape, with their outputs."""
        for done in tape[start:end]:
            if done.key is not None and self._empty.pop(done.key, None) is None:
                self._keep.drop(done.key)
        del tape[start:end]

    def cut(self, tape: Tape, first: int) -> None:
        """Forget what comes from `first` on, and all that cannot be gone on from then."""
        self.forget(tape, first)
        self.cut_for(tape, len(tape))

    def cut_for(self, tape: Tape, first: int) -> None:
        """Make sure that the call at `first` can run: what it reads is more than NaN."""
        left = [i for i, done in enumerate(tape[:first]) if id(done.module) in self._chained]
        if left and tape[left[-1]].key in self._empty:
            self.forget(tape, left[0])

    def thinned(self, calls: Sequence[Done]) -> bool:
        """True where the output of one of these calls has been let go of."""
        return any(done.key in self._empty for done in calls)

    def _thin(self, done: Done | None, path: Path) -> None:
        """Let go of an output that nobody reads again; NaN would tell if somebody did."""
        if done is None or done.key is None or done.path != path or done.key in self._empty:
            return
        self._empty[done.key] = tree_map_only(Tensor, _nothing, self._keep.get(done.key))
        self._keep.drop(done.key)


def _nothing(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.new_full((), torch.nan).expand(tensor.shape)
