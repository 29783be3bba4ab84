"""One number per class of a group of nodes: a class score's own, or reduced from its weights'."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunus.check import unknown
from prunus.layer import checked_scores
from prunus.nodes import ClassView
from prunus.parts import as_part
from prunus.scores.protocol import Score

__all__ = ["REDUCTIONS", "SIDES", "Reduction", "check_reduction", "class_scores"]

SIDES = ("consumer", "producer", "both")
# The numbers of one layer's weights with the class's lines as columns, and Int[classes lines].
Lines = Float[Tensor, "across lines"]
Places = Int[Tensor, "classes places"]
PIECE = 2**18  # numbers that are added up at a time


@dataclass(frozen=True)
class Reduction:
    """How the numbers of a class's weights become one.

    Attributes:
        of_layer: one number per class from the numbers of one layer.
        join: puts the layers' numbers together.
        end: the class's number from what was joined, and how many weights it has.
    """

    of_layer: Callable[[Lines, Places], Float[Tensor, " classes"]]
    join: Callable[[Tensor, Tensor], Tensor] = torch.add
    end: Callable[[Tensor, int], Tensor] = lambda total, entries: total


def _added(values: Lines, place: Places) -> Float[Tensor, " classes"]:
    return _sums(values)[place].sum(1)


def _squared(values: Lines, place: Places) -> Float[Tensor, " classes"]:
    return _sums(values, torch.square)[place].sum(1)


def _highest(values: Lines, place: Places) -> Float[Tensor, " classes"]:
    return values.to(torch.float64)[:, place].sum(2).amax(0)


def _sums(
    values: Lines, of: Callable[[Tensor], Tensor] = lambda numbers: numbers
) -> Float[Tensor, " lines"]:
    """The sum over each line in float64, of its numbers or a function of each of them.

    Lines that lie one after another come a few at a time: in float64, all of a large layer's take
    new memory, which costs more than adding them up.
    """
    count = max(1, PIECE // max(1, len(values)))
    apart = torch.split(values, count, 1) if values.stride(0) == 1 else (values,)
    return torch.cat([of(part.to(torch.float64)).sum(0) for part in apart])


REDUCTIONS: dict[str, Reduction] = {
    "sum": Reduction(_added),
    "l2": Reduction(_squared, end=lambda total, entries: total.sqrt()),
    "mean": Reduction(_added, end=lambda total, entries: total / entries),
    # The largest over outputs of what the class gives to one: for the taps of a channel a sum.
    "max": Reduction(_highest, join=torch.maximum),
    "abs_sum": Reduction(_added, end=lambda total, entries: total.abs()),
}


def check_reduction(side: str, reduction: str) -> None:
    """Raise a ValueError where a score's `side` or `reduction` is none that nodes know."""
    if side not in SIDES:
        raise unknown("side of a score", side, SIDES)
    if reduction not in REDUCTIONS:
        raise unknown("reduction of a score", reduction, REDUCTIONS)


def class_scores(view: ClassView, score: Any) -> Float[Tensor, " classes"]:
    """One number per class: the score's own, else reduced as its `side` and `reduction` say.

    A plain function counts the consumers' weights and adds them up.

    Raises:
        ValueError: an unknown side or reduction, numbers of a wrong shape, or NaN.
    """
    rule = as_part("score", score, Score)  # type: ignore[type-abstract]
    own = rule.classes(view)
    if own is not None:
        return checked_scores(view.name, own, (view.group.size,)).to("cpu", torch.float64)
    check_reduction(rule.side, rule.reduction)
    how = REDUCTIONS[rule.reduction]
    total, entries = None, 0
    for values, place in _numbers(view, rule):
        found = how.of_layer(values, place)
        total = found if total is None else how.join(total, found)
        entries += len(values) * place.shape[1]
    if total is None:
        return torch.zeros(view.group.size, dtype=torch.float64)
    return how.end(total, entries)


def _numbers(view: ClassView, rule: Score) -> Iterator[tuple[Lines, Places]]:
    """The weights' numbers of every layer on the sides that count."""
    if rule.side in ("consumer", "both"):
        for layer, place in view.consumers.values():
            values = checked_scores(layer.name, rule(layer), tuple(layer.weight.shape))
            yield values.cpu(), place
    if rule.side in ("producer", "both"):
        for layer, place in view.producers.values():
            values = checked_scores(layer.name, rule(layer), tuple(layer.weight.shape))
            yield values.cpu().T, place
