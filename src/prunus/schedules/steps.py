"""Schedules as iterators of steps."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from prunus.check import fraction, unknown, whole
from prunus.parts import LATER, UNITS, ScheduleFacts, shown

__all__ = [
    "SCHEDULES", "AtInit", "Iterative", "OneShot", "Refine", "Rewinding", "Schedule", "Step",
    "steps_of",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Step:
    """One turn of a schedule: prune, then maybe rewind, then maybe train.

    Attributes:
        index: position in the schedule, from 0.
        last: True for the final step.
        budget: share of the way to the target budget (geometric), in (0, 1]; None prunes nothing.
        train: True where the caller's `train(model, step)` runs after pruning, if given.
        rewind: "weights" (or True) where the kept weights return to their values at the start;
            None or False where they go on.
        span: the part of a full training that `train` is to carry out, as shares of its length; a
            `train` that does not read it trains in full.
        snapshot: True where later steps rewind to what this one leaves, and not to the start.
    """

    index: int
    last: bool
    budget: float | None
    train: bool
    rewind: Literal["weights"] | bool | None = False
    span: tuple[float, float] = (0.0, 1.0)
    snapshot: bool = False

    def __post_init__(self) -> None:
        if self.rewind not in (None, True, False, "weights"):
            raise unknown("rewind", str(self.rewind), ["weights"])
        if self.budget is not None:
            fraction("budget", self.budget, one=True)
        start, end = self.span
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(
                f"`span` must be two shares of a training with 0 <= start <= end <= 1, got "
                f"{self.span}."
            )


@runtime_checkable
class Schedule(ScheduleFacts, Protocol):
    """The call of every schedule."""

    def __call__(self) -> Iterator[Step]: ...


@dataclass(frozen=True)
class OneShot(Schedule):
    """Prune once; where a `train` function is given, train once afterwards."""

    single: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = UNITS

    def __call__(self) -> Iterator[Step]:
        """The only step."""
        yield Step(index=0, last=True, budget=1.0, train=True)


@dataclass(frozen=True)
class Iterative(Schedule):
    """Prune in `rounds` geometric steps, training after each.

    References:
        Han et al. (2015), Learning both weights and connections for efficient neural networks.
    """

    rounds: int = 3
    trains: ClassVar[bool] = True
    serves: ClassVar[tuple[str, ...]] = UNITS

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, low=1)

    def __call__(self) -> Iterator[Step]:
        """`rounds` steps; the budget falls geometrically."""
        for i in range(self.rounds):
            last = i == self.rounds - 1
            yield Step(index=i, last=last, budget=(i + 1) / self.rounds, train=True)


@dataclass(frozen=True)
class Rewinding(Schedule):
    """Train, prune, rewind the kept weights, train again, `rounds` times: lottery tickets.

    Weights are ranked as training has left them, and only then rewound. Rewound are all parameters
    and buffers; the optimizer is the `train` function's own, and so is the order of the data. With
    `early` > 0, or what="rate", `train` has to carry out the part of a training that `step.span`
    names; one that does not read it trains in full.

    Attributes:
        rounds: how often it is pruned; the budget falls geometrically.
        early: the share of a training after which the weights are those that are returned to; 0 is
            the initialisation.
        what: "weights" go back to that moment and train on from there; "rate": weights stay, and
            the part of the training after it is repeated, so that its learning rates come again.

    References:
        Frankle and Carbin (2019), The lottery ticket hypothesis, for early=0; Frankle et al.
        (2020), Linear mode connectivity and the lottery ticket hypothesis, for early > 0; Renda,
        Frankle, Carbin (2020), Comparing rewinding and fine-tuning in neural network pruning, for
        "rate".
    """

    rounds: int = 3
    early: float = field(default=0.0, metadata={LATER: True})
    what: Literal["weights", "rate"] = field(default="weights", metadata={LATER: True})
    trains: ClassVar[bool] = True
    __repr__ = shown

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, low=1)
        if not 0 <= self.early < 1:
            raise ValueError(
                f"`early` must be a share of the training in [0, 1), got {self.early!r}."
            )
        if self.what not in ("weights", "rate"):
            raise unknown("what of Rewinding", str(self.what), ["weights", "rate"])

    def __call__(self) -> Iterator[Step]:
        """A dense training, then `rounds` steps of pruning, rewinding and training."""
        weights, again = self.what == "weights", (self.early, 1.0)
        first = 0
        if weights and self.early > 0:
            yield Step(
                index=0, last=False, budget=None, train=True, span=(0.0, self.early), snapshot=True
            )
            yield Step(index=1, last=False, budget=None, train=True, span=again)
            first = 1
        else:
            yield Step(index=0, last=False, budget=None, train=True)
        for i in range(1, self.rounds + 1):
            yield Step(
                index=first + i,
                last=i == self.rounds,
                budget=i / self.rounds,
                train=True,
                rewind=weights,
                span=again,
            )


@dataclass(frozen=True)
class AtInit(Schedule):
    """Score and prune the untrained network, in `rounds` geometric steps, then train once."""

    rounds: int = 1
    before_training: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, low=1)

    def __call__(self) -> Iterator[Step]:
        """`rounds` steps without training in between."""
        for i in range(self.rounds):
            last = i == self.rounds - 1
            yield Step(index=i, last=last, budget=(i + 1) / self.rounds, train=last)


@dataclass(frozen=True)
class Refine(Schedule):
    """Prune a trained network in `rounds` geometric steps, measured anew at each; train at the end.

    Statistics and scores of a round are those of the network that the rounds before it left.
    Compensation, in every round, aims at the outputs of the dense network.

    References:
        derived in docs/second_order.md; the rounds of LeCun, Denker, Solla (1989), Optimal brain
        damage, without the training between them.
    """

    rounds: int = 20
    renews: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole("rounds", self.rounds, low=1)

    def __call__(self) -> Iterator[Step]:
        """`rounds` steps; training, if any, follows the last."""
        for i in range(self.rounds):
            last = i == self.rounds - 1
            yield Step(index=i, last=last, budget=(i + 1) / self.rounds, train=last)


MOST = 10_000  # turns of a schedule that are listed


def steps_of(schedule: Schedule) -> list[Step]:
    """All turns of a schedule.

    Raises:
        ValueError: there are more than anybody runs.
    """
    found = list(itertools.islice(schedule(), MOST + 1))
    if len(found) > MOST:
        raise ValueError(
            f"{schedule!r} has more than {MOST} steps, each of which prunes or trains. Give it "
            f"fewer rounds."
        )
    return found


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "OneShot": OneShot,
    "Iterative": Iterative,
    "Rewinding": Rewinding,
    "AtInit": AtInit,
    "Refine": Refine,
}
