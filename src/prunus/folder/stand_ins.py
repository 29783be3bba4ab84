"""Stand-ins for the blocks of a model, so that its own code says what each is called with."""

from typing import Any

from torch import Tensor, nn

__all__ = ["Call", "Reached", "StandIn", "Tour"]

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is called with beside its stream


class Reached(BaseException):
    """The last block was called: what follows is not wanted."""


class StandIn(nn.Module):
    """Takes a block's place, notes what it is called with, and gives the stream on as it came."""

    def __init__(self, block: nn.Module, tour: "Tour") -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)  # no child: its parameters are not ours
        object.__setattr__(self, "_tour", tour)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)  # models read the kind of their layers

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["_tour"].visit(hidden, args, kwargs)


class Tour:
    """One run of a model whose blocks are stand-ins; it ends at the last of them.

    Where `behind` is given, the stream behind all blocks, the run goes on from there to its end.
    """

    def __init__(self, blocks: int, *, tuples: bool, behind: Tensor | None = None) -> None:
        self.calls: list[Call] = []
        self.first: Tensor | None = None
        self.answer: Any = None
        self.straight = True
        self._last: Tensor | None = None
        self._blocks, self._tuples, self._behind = blocks, tuples, behind

    def visit(self, hidden: Tensor, args: Any, kwargs: Any) -> Any:
        """One block's call."""
        if self.first is None:
            self.first = hidden
        elif hidden is not self._last:
            self.straight = False
            raise Reached
        self._last = hidden
        self.calls.append((args, dict(kwargs)))
        if len(self.calls) == self._blocks:
            if self._behind is None:
                raise Reached
            hidden = self._behind
        return (hidden,) if self._tuples else hidden
