"""How the masks of a network change while the caller trains it."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Generator, Tensor

from prunus.parts import AllocationFacts, CompensationFacts, Composition, ScoreFacts, SelectionFacts
from prunus.schedules import Schedule, Step

__all__ = ["Course", "Growth", "not_between", "updates"]


@runtime_checkable
class Growth(Protocol):
    """Which of the removed weights return: those with the largest numbers."""

    @property
    def reads_gradient(self) -> bool:
        """True where it needs the gradients of removed weights."""
        return False

    def __call__(
        self, gradient: Float[Tensor, "out in"], generator: Generator
    ) -> Float[Tensor, "out in"]:
        """One number per weight.

        Args:
            gradient: of the loss, removed weights included; zeros where it was not asked for.
            generator: of this layer and update.
        """
        ...


@runtime_checkable
class Course(Schedule, Protocol):
    """A schedule inside the caller's training: it stands in a recipe's `schedule`.

    `prunus.sparsify` carries it out, and `prunus.prune` refuses it. Masks change after optimizer
    steps whose number is a multiple of `every` and lies between the shares `start` and `stop` of
    the training; the last of these reaches the density that was asked for.
    """

    @property
    def inside(self) -> bool:
        """Always."""
        return True

    @property
    def every(self) -> int:
        """Optimizer steps from one change of the masks to the next."""
        return 1

    @property
    def start(self) -> float:
        """The share of the training before which no mask changes."""
        return 0.0

    @property
    def stop(self) -> float:
        """The share of the training after which no mask changes; `start` for never."""
        return 1.0

    @property
    def grow(self) -> Growth | None:
        """How removed weights are chosen that return; None where `replace` is 0 throughout."""
        return None

    def __call__(self) -> Iterator[Step]:
        """Has no steps between trainings.

        Raises:
            ValueError: always; it names what to call instead.
        """
        raise not_between(repr(self))

    def density(self, share: float, final: float) -> float:
        """Kept / total after the share `share` of the training, on the way to `final`."""
        ...

    def replace(self, share: float) -> float:
        """The part of every pool's kept weights that is exchanged at this share."""
        return 0.0

    def beside(self, recipe: Composition) -> str | None:
        """Why it cannot stand in this recipe, or None."""
        return _refused(self, recipe)


def not_between(what: str) -> ValueError:
    """The error where a course, or a recipe with one, is to prune by itself."""
    return ValueError(
        f"{what} changes masks inside training. Use prunus.sparsify(model, recipe, density, "
        f"optimizer=…, steps=…) in your loop, or a recipe with another schedule."
    )


def updates(course: Course, steps: int) -> list[int]:
    """The optimizer steps, counted from 1, after which masks change.

    Raises:
        ValueError: the course is to change masks and there is no such step.
    """
    if course.stop <= course.start:
        return []
    # A share such as 0.7 is no binary fraction: 0.7 · 10 is meant to reach step 7.
    slack = 1e-9 * steps
    found = [
        t
        for t in range(course.every, steps + 1, course.every)
        if course.start * steps - slack <= t <= course.stop * steps + slack
    ]
    if not found:
        raise ValueError(
            f"No step from {course.start:g} to {course.stop:g} of {steps} is a multiple of "
            f"`every` = {course.every}, so {course!r} would never change a mask. Lower `every`."
        )
    return found


def _refused(course: Course, recipe: Composition) -> str | None:
    parts: dict[str, ScoreFacts | AllocationFacts | SelectionFacts | CompensationFacts] = {
        "score": recipe.score, "allocation": recipe.allocation, "selection": recipe.selection,
        "compensation": recipe.compensation,
    }  # fmt: skip
    for name, part in parts.items():
        wanted = tuple(part.statistics)
        if wanted:
            return (
                f"{part!r} reads statistics of data, which a training does not collect. Take a "
                f"`{name}` without them beside {course!r}, or prune between trainings."
            )
    if recipe.allocation.measures_curves or recipe.inputs == "pruned":
        what = "inputs='pruned'" if recipe.inputs == "pruned" else repr(recipe.allocation)
        return f"{what} needs data, which a training does not collect, beside {course!r}."
    if recipe.selection.joint or recipe.compensation.refits:
        part = recipe.selection if recipe.selection.joint else recipe.compensation
        return (
            f"{part!r} gives kept weights new values, and in {course!r} the training does. Take "
            f"TopK() or RandomK(), and NoCompensation()."
        )
    if recipe.granularity.fixed is not None and course.stop > course.start:
        return (
            f"{recipe.granularity!r} fixes the counts from the first step on, and {course!r} "
            f"changes masks. Use Static()."
        )
    return None


def in_unit_order(course: str, start: float, stop: float) -> None:
    """Raise a ValueError unless 0 <= start < stop <= 1."""
    if not 0 <= start < stop <= 1:
        raise ValueError(
            f"{course} needs 0 <= start < stop <= 1, shares of the training, got {start!r} and "
            f"{stop!r}."
        )
