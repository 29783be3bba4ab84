"""Schedules as iterators of steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from prunus.check import whole

__all__ = ["SCHEDULES", "AtInit", "Iterative", "OneShot", "Rewinding", "Schedule", "Step"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One turn of a schedule: prune, then maybe rewind, then maybe train.

    Attributes:
        index: position in the schedule, from 0.
        last: True for the final step.
        budget: share of the way to the target budget (geometric), in (0, 1]; None prunes nothing.
        train: True where the caller's `train(model, step)` runs after pruning, if given.
        rewind: True where the kept weights return to their values at the start.
    """

    index: int
    last: bool
    budget: float | None
    train: bool
    rewind: bool = False


class Schedule(Protocol):
    """The call of every schedule; `trains` says that a `train` function is needed."""

    @property
    def trains(self) -> bool: ...

    def __call__(self) -> Iterator[Step]: ...


@dataclass(frozen=True)
class OneShot:
    """Prune once; where a `train` function is given, train once afterwards."""

    @property
    def trains(self) -> bool:
        """No: training is optional."""
        return False

    def __call__(self) -> Iterator[Step]:
        """The only step."""
        yield Step(index=0, last=True, budget=1.0, train=True)


@dataclass(frozen=True)
class Iterative:
    """Prune in `rounds` geometric steps, training after each.

    References:
        Han et al. (2015), Learning both weights and connections for efficient neural networks.
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, low=1)

    @property
    def trains(self) -> bool:
        """Yes."""
        return True

    def __call__(self) -> Iterator[Step]:
        """`rounds` steps; the budget falls geometrically."""
        for i in range(self.rounds):
            last = i == self.rounds - 1
            yield Step(index=i, last=last, budget=(i + 1) / self.rounds, train=True)


@dataclass(frozen=True)
class Rewinding:
    """Train, prune, rewind the kept weights to their start, train again, `rounds` times.

    References:
        Frankle and Carbin (2019), The lottery ticket hypothesis.
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, low=1)

    @property
    def trains(self) -> bool:
        """Yes."""
        return True

    def __call__(self) -> Iterator[Step]:
        """A dense training, then `rounds` steps of pruning, rewinding and training."""
        yield Step(index=0, last=False, budget=None, train=True)
        for i in range(self.rounds):
            last = i == self.rounds - 1
            yield Step(
                index=i + 1, last=last, budget=(i + 1) / self.rounds, train=True, rewind=True
            )


@dataclass(frozen=True)
class AtInit:
    """Score and prune the untrained network, in `rounds` geometric steps, then train once."""

    rounds: int = 1

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, low=1)

    @property
    def trains(self) -> bool:
        """No: training may follow elsewhere."""
        return False

    def __call__(self) -> Iterator[Step]:
        """`rounds` steps without training in between."""
        for i in range(self.rounds):
            last = i == self.rounds - 1
            yield Step(index=i, last=last, budget=(i + 1) / self.rounds, train=last)


SCHEDULES = {"OneShot": OneShot, "Iterative": Iterative, "Rewinding": Rewinding, "AtInit": AtInit}
