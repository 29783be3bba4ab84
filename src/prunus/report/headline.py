"""The first sentences of a summary and of a page: what was kept, what it costs, what is known."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.cost import speedup
from prunus.files import Rows
from prunus.means import as_loss, mean
from prunus.theory.gap.words import headline as certificate_headline

__all__ = [
    "FEWEST",
    "Standing",
    "comparison_headline",
    "higher_is_better",
    "is_share",
    "named_score",
    "pruned_headline",
    "shown_score",
    "size_words",
    "standing",
    "time_text",
    "time_words",
]

ENOUGH = 5
FEWEST = 3  # with fewer seeds no interval of a difference is worth its name
LEVEL = 0.95
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"))
LOWER = ("error", "loss", "entropy", "perplexity", "gap", "mse", "mae", "rmse")
HIGHER = ("accuracy", "acc", "auc", "f1", "precision", "recall", "iou", "map", "bleu", "r2")
STAGES = {"before": "before", "pruned": "pruned", "trained": "retrained"}


def pruned_headline(pruned: Any, certificate: Any = None) -> str:
    """What pruning did to a network, in sentences: score, size, time, guarantee.

    Args:
        pruned: a `Pruned`.
        certificate: what `certify` found of it, or None.
    """
    said = []
    plan = pruned.plan
    if not plan.feasible:
        said.append(
            f"The budget is NOT MET: {plan.kind} {plan.limit:.4g} was asked for, "
            f"{plan.value:.4g} is the least."
        )
    said += [_scores(pruned.metrics), _size(pruned), time_words(pruned)]
    if certificate is not None:
        said.append(certificate_headline(certificate))
    return " ".join(said)


def _scores(metrics: Mapping[str, Any]) -> str:
    """The first metric at every stage; the dense network's last, as what it is held against."""
    stages = [stage for stage in STAGES if stage in metrics]
    if len(stages) < 2:
        return "Not scored: `evaluate=` was not given."
    name, dense = _first(metrics["before"])
    shown = {stage: shown_score(name, _first(metrics[stage])[1], dense) for stage in stages}
    last = stages[-1]
    others = ", ".join(f"{shown[s]} {STAGES[s]}" for s in reversed(stages[:-1]))
    title = "What `evaluate` measures" if name == "metric" else named_score(name)
    title = title[:1].upper() + title[1:]
    return f"{title} is {shown[last]} {STAGES[last]}, {others}."


def _first(value: Any) -> tuple[str, float]:
    if isinstance(value, Mapping):
        name = next(iter(value))
        return str(name), float(value[name])
    return "metric", float(value)


def _size(pruned: Any) -> str:
    before, after = pruned.cost_before, pruned.cost_after
    times = before.bytes / after.bytes if after.bytes else math.inf
    much = f"{times:.3g} times smaller" if times >= 1.05 else "no smaller"
    count = f"{after.parameters:,} of {before.parameters:,} parameters"
    files = f"{size_words(after.bytes)} of {size_words(before.bytes)}"
    if not pruned.recipe.granularity.shrinks:
        return f"On disk {much}: {count} are not zero, {files}; in memory as large as before."
    return f"{much[0].upper()}{much[1:]}: {count} are left, {files}."


def time_words(pruned: Any) -> str:
    """How much faster, in one sentence; where it was not timed, how to time it."""
    before, after = pruned.cost_before.latency, pruned.cost_after.latency
    if not pruned.recipe.granularity.shrinks:
        return "In time no gain: zeros inside dense tensors take a dense network's time."
    if before is None or after is None:
        return "Not timed: `measured()` does that."
    found = speedup(before, after)
    if found.verdict == "no benefit":
        said = f"In time not told apart from the dense network ({found.ratio:.2f}×"
    elif found.verdict == "faster":
        said = f"{found.ratio:.2g} times faster ({found.ratio:.2f}×"
    else:
        said = f"Slower than the dense network ({found.ratio:.2f}×"
    threads = f"{before.threads} thread{'' if before.threads == 1 else 's'}"
    samples = f"{before.batch} sample{'' if before.batch == 1 else 's'}"
    return f"{said}, {found.low:.2f} to {found.high:.2f}; {samples}, {threads})."


def comparison_headline(
    records: Iterable[Mapping[str, Any]], metric: str, dense: float | None
) -> list[str]:
    """How far one may prune, by which recipe, and which others are not told apart from it.

    The first sentence is on the lowest density at which the best recipe is within a point (of a
    share) or within 2 % of the dense network's score; the second on the lowest density of all.

    Args:
        records: with recipe, density, seed and score, all of one network or of one task.
        metric: the score's name.
        dense: the dense networks' mean score, or None where it is not known.
    """
    rows = [r for r in records if r.get("score") is not None]
    if not rows:
        return ["There are no scores."]
    scores = [float(r["score"]) for r in rows]
    higher = higher_is_better(metric, dense, scores)
    levels = _levels(rows)
    found = {level: standing(levels[level], higher) for level in levels}
    chosen = _farthest(found, metric, dense, higher)
    lowest = list(levels)[-1]
    lines = [_told(metric, dense, chosen, found[chosen])]
    if lowest != chosen:
        lines.append(_told(metric, dense, lowest, found[lowest]))
    seeds = len({r["seed"] for r in rows})
    if len({r["recipe"] for r in rows}) > 1 and seeds < FEWEST:
        lines.append(f"Too few seeds ({seeds}) to tell recipes apart.")
    elif FEWEST <= seeds < ENOUGH and any(found[level].ties for level in (chosen, lowest)):
        lines.append(f"With {seeds} seeds only large differences are told apart.")
    if seeds >= FEWEST and found[chosen].untested:
        lines.append(
            "Recipes that draw nothing ran once, on one network: among them the order is this "
            "network's and is not tested."
        )
    return lines


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The recipes of one density.

    Attributes:
        best: the recipe with the best mean score.
        mean: that score.
        ties: those not told apart from it, the better first.
        untested: how many others were run too seldom for a test.
    """

    best: str
    mean: float
    ties: tuple[str, ...]
    untested: int


def standing(rows: Rows, higher: bool) -> Standing:
    """Which recipe is best at one density, and which are not told apart from it.

    A recipe is told apart where the interval of its difference to the best excludes 0: Student's,
    over the seeds that both have, at 95 % shared out over the others (Bonferroni); where one of
    them draws nothing and was run once, of the other's runs against it. One run that is NaN or
    infinite makes the mean so, and tells its recipe apart from all whose mean is a number.

    That the best was found by the same runs is paid for (Hsu 1984, multiple comparisons with the
    best): with normal differences, the recipe that is truly best is the one named or one of its
    ties with a probability of 97.5 % at least, for it goes only where another one beats it in a
    test that errs to that side in 5 % / 2 / (recipes − 1). Among m recipes that are all equal some
    are told apart in m · 2.5 % at most, the sum over all pairs.

    Args:
        rows: with recipe, seed and score, all of one density.
        higher: True where a larger score is better.
    """
    runs: dict[str, dict[Any, float]] = {}
    for row in rows:
        runs.setdefault(str(row["recipe"]), {})[row["seed"]] = float(row["score"])
    means = {name: mean(list(own.values())) for name, own in runs.items()}
    loss = {name: as_loss(value, higher=higher) for name, value in means.items()}
    best = min(loss, key=lambda name: loss[name])
    share = (1 - LEVEL) / max(1, len(runs) - 1)
    told = {
        name: (
            _apart(runs[best], runs[name], share)
            if math.isfinite(means[best]) and math.isfinite(means[name])
            else math.isfinite(means[best])
        )
        for name in runs
        if name != best
    }
    ties = [name for name, apart in told.items() if apart is False]
    return Standing(
        best=best,
        mean=means[best],
        ties=tuple(sorted(ties, key=lambda name: loss[name])),
        untested=sum(apart is None for apart in told.values()),
    )


def _apart(one: Mapping[Any, float], other: Mapping[Any, float], share: float) -> bool | None:
    """Whether two recipes are told apart; None where there are too few runs to ask."""
    from scipy.stats import t

    both = [seed for seed in one if seed in other]
    if len(both) >= FEWEST:
        differences = [other[seed] - one[seed] for seed in both]
    elif min(len(one), len(other)) == 1 and max(len(one), len(other)) >= FEWEST:
        (level,), drawn = sorted((list(one.values()), list(other.values())), key=len)
        differences = [value - level for value in drawn]
    else:
        return None
    centre, spread = statistics.fmean(differences), statistics.stdev(differences)
    # So few test samples that all seeds differ alike: the signs are left.
    if spread <= 1e-9 * abs(centre):
        return centre != 0 and 2 * 0.5 ** len(differences) <= share
    half = float(t.ppf(1 - share / 2, len(differences) - 1)) * spread / math.sqrt(len(differences))
    return abs(centre) > half


def _levels(rows: Rows) -> dict[Any, list[Mapping[str, Any]]]:
    """The rows of each density, the densest first; others than numbers in their own order."""
    found: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["density"], []).append(row)
    number = {d: float(d) if isinstance(d, int | float) else None for d in found}
    if any(value is None for value in number.values()):
        return found
    return {d: found[d] for d in sorted(found, key=lambda d: -(number[d] or 0.0))}


def _farthest(found: Mapping[Any, Any], metric: str, dense: float | None, higher: bool) -> Any:
    levels = list(found)
    if dense is None:
        return levels[0]
    allowed = 0.01 if is_share(metric, [dense]) else 0.02 * abs(dense)
    sign = -1.0 if higher else 1.0
    near = [d for d in levels if sign * (found[d].mean - dense) <= allowed]
    return near[-1] if near else levels[0]


def _told(metric: str, dense: float | None, density: Any, found: Standing) -> str:
    against = "" if dense is None else f", {shown_score(metric, dense)} dense"
    where = f"density {density:g}" if isinstance(density, int | float) else str(density)
    said = f"At {where} the best is `{found.best}`: {named_score(metric)} "
    said += f"{shown_score(metric, found.mean, dense)}{against}."
    if not found.ties:
        return said
    shown = ", ".join(f"`{name}`" for name in found.ties[:4])
    more = f" and {len(found.ties) - 4} more" if len(found.ties) > 4 else ""
    return f"{said} Not told apart from it: {shown}{more}."


def higher_is_better(metric: str, dense: float | None, scores: Sequence[float]) -> bool:
    """By the score's name; where that says nothing, by what pruning does to it on average."""
    words = metric.lower().replace("-", "_").split("_")
    if any(word in LOWER for word in words):
        return False
    if any(word in HIGHER for word in words):
        return True
    known = [score for score in scores if math.isfinite(score)]
    return dense is not None and bool(known) and statistics.fmean(known) <= dense


def is_share(metric: str, values: Iterable[float]) -> bool:
    """True of a score that is shown in percent: an accuracy or error within [0, 1]."""
    words = metric.lower().replace("-", "_").split("_")
    named = any(word in ("accuracy", "acc") for word in words) or metric == "test_error"
    return named and all(0 <= value <= 1 for value in values)


def named_score(metric: str) -> str:
    """A score's name as words."""
    return "the score" if metric == "metric" else metric.replace("_", " ")


def shown_score(metric: str, value: float, *others: float | None) -> str:
    """A score as text, in percent where it is a share."""
    if is_share(metric, [value, *(o for o in others if o is not None)]):
        return f"{100 * value:.2f} %"
    return f"{value:.4g}"


def size_words(size: float) -> str:
    """Bytes in the unit that reads best."""
    for factor, unit in UNITS:
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:,.0f} bytes"


def time_text(seconds: float) -> str:
    """A time in the unit that reads best."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
