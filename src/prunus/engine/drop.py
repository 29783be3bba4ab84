"""The lowest density at which the caller's metric is still good enough, by bisection."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn

from prunus.budget import Budget
from prunus.calibration.batches import to_device
from prunus.calibration.place import device_of
from prunus.engine.runs import as_metrics
from prunus.engine.watched import watched
from prunus.hints import Evaluate, Metrics
from prunus.progress import progress_bar
from prunus.report.headline import higher_is_better, is_share
from prunus.result import Pruned
from prunus.rows import RowSet
from prunus.surgery.cut import changes_norms

__all__ = ["Search", "Trial", "search", "within_drop"]

PROBE = 1 / 64  # what pruning does to a metric is seen here
FLOOR = 1 / 1024
COMPACT = "`evaluate` was given compact networks, whose norms take other statistics"
RESOLUTION = 1.03  # ratio of two neighbouring densities at which the search ends


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One density that was tried.

    Attributes:
        density: as asked for.
        met: as counted on the pruned network; larger where pools keep their minimum.
        value: of the metric.
    """

    density: float
    met: float
    value: float


@dataclass(eq=False, kw_only=True)
class Search:
    """What is known so far of a metric as a function of the density.

    Attributes:
        dense: the dense network's value.
        limit: how much worse than that a value may be.
        higher: True where a larger value is better; None until a trial has told.
        trials: in order.
    """

    dense: float
    limit: float
    higher: bool | None
    trials: list[Trial] = field(default_factory=list)

    def lost(self, trial: Trial) -> float:
        """How much worse a trial is than the dense network; NaN where its value is."""
        return (self.dense - trial.value) * (-1 if self.higher is False else 1)

    def good(self, trial: Trial) -> bool:
        """Whether it is within the limit, to rounding; NaN is not."""
        return self.lost(trial) <= self.limit + 1e-9 * max(1.0, abs(self.dense))

    def rank(self, trial: Trial) -> tuple[float, float]:
        """The less dense the better; of equally dense ones the better metric."""
        return trial.met, self.lost(trial)

    @property
    def best(self) -> Trial | None:
        """The least dense of those within the limit."""
        return min(filter(self.good, self.trials), key=self.rank, default=None)

    @property
    def monotone(self) -> bool:
        """False where a denser network than the best lost more than the limit."""
        best = self.best
        return best is None or all(self.good(t) for t in self.trials if t.met > best.met)


def search(found: Search, run: Callable[[float], Trial], tries: int) -> None:
    """Try densities until two neighbours, within and beyond the limit, are 3 % apart.

    Densities are halved until two in a row lose too much (one may do so by chance), then the
    interval between the lowest that is good enough and the next one below it is halved in
    proportion. For a metric that is not monotone the lowest density that was *tried* and is within
    the limit is found, which need not be the lowest there is.

    Args:
        found: the metric and its limit; takes the trials. Where it does not say which way is
            better, 1/64 is tried first, and what that does to the metric is taken for worse.
        run: prunes to a density in (0, 1) and evaluates.
        tries: calls of `run` at most.

    Raises:
        ValueError: the metric at 1/64 is NaN and so does not tell which way is better.
    """
    known: dict[float, Trial] = {}

    def at(density: float) -> Trial:
        if density not in known:
            known[density] = run(density)
            found.trials.append(known[density])
        return known[density]

    if found.higher is None:
        value = at(PROBE).value
        if math.isnan(value):
            raise ValueError(
                f"The metric is NaN at density {PROBE:.3g}, which does not tell whether higher is "
                f"better. Give the budget higher_is_better=True or False."
            )
        found.higher = value <= found.dense
    _halve(found, at, tries)
    high = min((t.density for t in found.trials if found.good(t)), default=1.0)
    low = max((t.density for t in found.trials if t.density < high), default=high)
    while high / low > RESOLUTION and len(known) < tries:
        middle = float(f"{math.sqrt(high * low):.3g}")
        if found.good(at(middle)):
            high = middle
        else:
            low = middle


def _halve(found: Search, at: Callable[[float], Trial], tries: int) -> None:
    """Halve the density until two in a row lose too much, or nothing more can be removed."""
    density, failed, before = 0.5, 0, math.inf
    while density >= FLOOR and len(found.trials) < tries:
        trial = at(density)
        failed = 0 if found.good(trial) else failed + 1
        if failed == 2 or trial.met >= before:
            return
        density, before = density / 2, trial.met


def within_drop(
    run: Callable[[float], Pruned],
    model: nn.Module,
    budget: Budget,
    evaluate: Evaluate,
    *,
    stage: str,
    progress: bool | None,
) -> Pruned:
    """The least dense network whose metric is within a budget of `drop`.

    Args:
        run: prunes to a density.
        model: the dense network.
        budget: of `drop`.
        evaluate: the caller's.
        stage: "pruned" or "trained", under which `evaluate`'s answer is kept.
        progress: as in `progress_bar`.

    Raises:
        ValueError: no such metric, it is NaN for the dense network, or no density is good enough.
    """
    before = evaluate(model)
    dense = as_metrics(before)
    name = budget.metric if budget.metric is not None else next(iter(dense))
    if name not in dense:
        raise ValueError(f"`evaluate` gives {sorted(dense)}, not {name!r}. Name one of them.")
    if not math.isfinite(dense[name]):
        raise ValueError(f"{name} of the dense network is {dense[name]}, from which nothing drops.")
    _limiting(name, dense[name], budget)
    found = Search(dense=dense[name], limit=budget.value, higher=budget.higher_is_better)
    best: list[tuple[Trial, Pruned, Metrics]] = []  # one at most: networks are large
    read: list[RowSet] = []

    with progress_bar("searching the density", budget.tries, progress=progress) as advance:

        def attempt(density: float) -> Trial:
            pruned = run(density)
            value, rows = watched(_judged(pruned), evaluate)
            read.append(rows)
            trial = Trial(density=density, met=pruned.cost_after.density, value=_score(value, name))
            new = (trial, pruned, value)
            good = [one for one in (*best, new) if found.higher is None or found.good(one[0])]
            best[:] = sorted(good, key=lambda one: found.rank(one[0]))[:1]
            advance(1)
            return trial

        search(found, attempt, budget.tries)
    if found.best is None:
        raise ValueError(_none(found, name))
    [(trial, pruned, value)] = best
    seen = RowSet.of(rows.hashes for rows in read)
    plan = replace(
        pruned.plan,
        limit=budget.value,
        kind="drop",
        value=found.lost(trial),
        notes=(
            *_account(found, trial, name),
            *((COMPACT,) if changes_norms(pruned) else ()),
            _optimism(pruned, seen),
            *pruned.plan.notes,
        ),
        rows=seen if len(seen) else None,
    )
    return replace(pruned, plan=plan, metrics={"before": before, stage: value})


def _judged(pruned: Pruned) -> nn.Module:
    """The network that the budget is about: the compact one, where that is another."""
    if not changes_norms(pruned):
        return pruned.model
    return pruned.compact(to_device(pruned.example, device_of(pruned.model)))


def _limiting(name: str, dense: float, budget: Budget) -> None:
    """Raise where a share may drop to its end, so that every network is good enough."""
    if not is_share(name, [dense]):
        return
    room = dense if higher_is_better(name, dense, []) else 1 - dense
    if budget.value >= room:
        raise ValueError(
            f"A drop of {budget.value:g} allows any {name.replace('_', ' ')} ({dense:.4g} dense). "
            f"It is in the metric's own unit: a point is 0.01, or 1%."
        )


def _score(value: Metrics, name: str) -> float:
    scores = as_metrics(value)
    if name not in scores:
        raise ValueError(f"`evaluate` gave {name!r} of the dense network, now {sorted(scores)}.")
    return scores[name]


def _account(found: Search, best: Trial, name: str) -> tuple[str, ...]:
    better = "higher" if found.higher else "lower"
    said = (
        f"density {best.density:.3g} found by {len(found.trials) + 1} evaluations (the dense "
        f"network, and {len(found.trials)} densities): {name} {found.dense:.4g} → "
        f"{best.value:.4g}, {better} is better; {found.limit:.4g} worse was allowed"
    )
    if found.monotone:
        return (said,)
    worst = max((t for t in found.trials if t.met > best.met and not found.good(t)),
                key=lambda t: t.met)  # fmt: skip
    return (
        said,
        f"{name} does not fall steadily: at density {worst.density:.3g} it is {worst.value:.4g}, "
        f"beyond the limit, and better again at {best.density:.3g}, the lowest of those tried that "
        f"is within it",
    )


def _optimism(pruned: Pruned, read: RowSet) -> str:
    """That a choice by a metric flatters the metric, and which samples it was made on."""
    said = "the density was chosen by this metric, which flatters it: score once on other samples"
    if pruned.data_rows is None or not len(read):
        return said
    both = pruned.data_rows.among(read.hashes)
    if not both:
        return said
    return f"{said}; {both} of the {len(read)} samples that `evaluate` reads also calibrated"


def _none(found: Search, name: str) -> str:
    nearest = min(found.trials, key=lambda t: (math.isnan(t.value), found.lost(t)))
    return (
        f"No density of the {len(found.trials)} that were tried keeps {name} within "
        f"{found.limit:.4g} of the dense network's {found.dense:.4g}: the nearest is "
        f"{nearest.value:.4g} at density {nearest.density:.3g}. Allow more, pass train=, or take a "
        f"recipe with +ls."
    )
