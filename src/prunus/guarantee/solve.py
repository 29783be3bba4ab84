"""From error curves and an exact value to whole numbers per layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prunus.guarantee.bounds import Bounds
from prunus.guarantee.criteria import Outputs
from prunus.guarantee.family import Family
from prunus.theory.gap.plan import allocate, tighten

__all__ = [
    "GRID",
    "Problem",
    "careful_first",
    "error_curves",
    "grid_of",
    "in_order",
    "least_error",
    "solve",
]

GRID = np.concatenate([[0.0], np.geomspace(0.003, 0.99, 36)])  # pruned shares
STEPS = 46  # plans that are put to the test, from the most careful on
Choice = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """Options per layer, what each costs, and what a choice of them comes to.

    Attributes:
        kept: units that each option keeps, per name, from all of them downwards.
        errors: separable error of each option, 0 for the first.
        exact: the value that the limit bounds, of counts.
        cost: of counts.
        squared: the errors add up to the square of the value.
    """

    kept: Mapping[str, np.ndarray]
    errors: Sequence[np.ndarray]
    exact: Callable[[Mapping[str, int]], float]
    cost: Callable[[Mapping[str, int]], float]
    squared: bool
    _known: dict[Choice, float] = field(default_factory=dict, repr=False)

    @property
    def costs(self) -> list[np.ndarray]:
        """Cost of each option while every other layer is whole."""
        full = {name: int(options[0]) for name, options in self.kept.items()}
        return [
            np.array([self.cost({**full, name: int(k)}) for k in options])
            for name, options in self.kept.items()
        ]

    def counts(self, choice: Choice) -> dict[str, int]:
        """What a choice keeps."""
        return {
            name: int(options[g])
            for (name, options), g in zip(self.kept.items(), choice, strict=True)
        }

    def total(self, choice: Choice) -> float:
        """What a choice costs."""
        return self.cost(self.counts(choice))

    def value(self, choice: Choice) -> float:
        """What a choice comes to; nothing pruned is no gap."""
        if not any(choice):
            return 0.0
        if choice not in self._known:  # bisections end among a few choices, and the network runs
            self._known[choice] = self.exact(self.counts(choice))
        return self._known[choice]


def grid_of(family: Family) -> dict[str, np.ndarray]:
    """The counts that a plan may give each name: all, then fewer on a geometric grid."""
    found = {}
    for name, size in family.sizes.items():
        kept = size - np.floor(GRID * size).astype(int)
        kept[1:] = kept[1:] // family.step * family.step
        low = max(family.smallest[name], family.step if family.step > 1 else 0)
        found[name] = np.unique(np.maximum(kept, min(size, low)))[::-1]
    return found


def error_curves(
    kind: str,
    family: Family,
    options: Mapping[str, np.ndarray],
    outputs: Outputs | None,
    bounds: Bounds | None,
) -> list[np.ndarray]:
    """What pruning each name alone costs: measured squared gaps, or products of norms."""
    curves = []
    for name, counts in options.items():
        row = [0.0]
        for k in counts[1:]:
            network = family.network({name: int(k)})
            if outputs is not None and kind in ("predicted", "changed"):
                row.append(outputs.square(network))
            else:
                assert bounds is not None  # the other kinds are bounds
                row.append(bounds.alone(kind, network))
        curves.append(np.array(row))
    return curves


def solve(problem: Problem, target: float) -> Choice:
    """The least cost whose value is within the target; never worse than one share for all."""
    nothing = (0,) * len(problem.kept)
    if target <= 0:
        return nothing
    costs = problem.costs
    start = target**2 if problem.squared else target
    best = tighten(
        lambda budget: allocate(costs, problem.errors, budget).choices,
        problem.value,
        problem.total,
        target,
        start,
    )
    if problem.value(best) > target:
        best = nothing
    uniform = _uniform(problem, target)
    return uniform if problem.total(uniform) < problem.total(best) else best


def _uniform(problem: Problem, target: float) -> Choice:
    """The same place of the grid in every layer, as far down as the value allows."""
    last = [len(options) - 1 for options in problem.kept.values()]

    def at(place: int) -> Choice:
        return tuple(min(place, end) for end in last)

    low, high = 0, max(last) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if problem.value(at(middle)) <= target else (low, middle)
    return at(low)


def in_order(
    sequence: Sequence[Choice], target: float, test: Callable[[Choice], float]
) -> tuple[Choice | None, float]:
    """The last of a sequence of plans before the first that fails a test on other samples.

    So many tests need no correction: a plan beyond the target is accepted only if the first such
    plan of the sequence passes its test, which has probability at most δ.

    Args:
        sequence: from the most careful plan on, made without the samples of the test.
        target: limit of the test's value.
        test: an upper confidence limit at 1 − δ of a plan's true value.

    Returns:
        the plan and its confidence limit; None, and 0, where already the first fails.

    References:
        Maurer, Hothorn and Lehmacher (1995), Multiple comparisons in drug clinical trials and
        preclinical assays: a-priori ordered hypotheses; Angelopoulos et al. (2021), Learn then
        test, section 2.2.
    """
    found, reached = None, 0.0
    for choice in sequence:
        value = test(choice)
        if value > target:
            break
        found, reached = choice, value
    return found, reached


def careful_first(problem: Problem, target: float) -> list[Choice]:
    """Plans from far inside what the planning samples allow to somewhat beyond it.

    Along the budgets of the dynamic programme, or of one share for all layers where that prunes
    more on the planning samples.
    """
    costs = problem.costs
    total = sum(float(e[-1]) for e in problem.errors)

    def at(budget: float) -> Choice:
        return allocate(costs, problem.errors, budget).choices

    low, high = -40.0, 0.0  # of log2 of the share of all errors that the planning samples allow
    while high - low > 0.05:
        middle = (low + high) / 2
        fits = problem.value(at(total * 2**middle)) <= target
        low, high = (middle, high) if fits else (low, middle)
    planned = at(total * 2**low)
    uniform = _uniform(problem, target)
    if problem.total(uniform) < problem.total(planned):
        last = [len(options) - 1 for options in problem.kept.values()]
        deepest = min(max(last), max(uniform) + 3)
        return [tuple(min(place, end) for end in last) for place in range(1, deepest + 1)]
    budgets = total * 2 ** np.linspace(low - 14, low + 1, STEPS)
    choices = dict.fromkeys(at(float(b)) for b in budgets)
    falling: list[Choice] = []
    for choice in choices:  # rounding may keep more at a larger budget: such a plan is no step
        if any(choice) and (not falling or problem.total(choice) < problem.total(falling[-1])):
            falling.append(choice)
    return falling


def least_error(problem: Problem, most: float) -> Choice:
    """The least separable error whose cost is at most `most`."""
    costs = problem.costs
    total = sum(float(e[-1]) for e in problem.errors)
    low, high = -60.0, 0.1

    def at(budget: float) -> Choice:
        return allocate(costs, problem.errors, total * 2**budget).choices

    best = tuple(len(options) - 1 for options in problem.kept.values())
    while high - low > 0.02:
        middle = (low + high) / 2
        choice = at(middle)
        if problem.total(choice) <= most:
            high = middle
            best = choice
        else:
            low = middle
    return best
