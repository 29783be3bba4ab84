"""Records by place, and their scores.

A *place* is a task, a schedule and a budget; at a place every recipe has one record per seed. Seeds
are paired: the same seed means the same dense network and the same order of retraining samples.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from prunus.bench.grid.budgets import density_asked, order, place_text, words
from prunus.bench.record import Record
from prunus.files import Row
from prunus.means import worst

__all__ = [
    "Key",
    "Place",
    "by_place",
    "higher_is_better",
    "numbered",
    "place_fields",
    "place_of",
    "score",
    "scores_by_place",
]

Place = tuple[str, str, str]
Key = tuple[str, str, str, str]


def score(record: Record, metric: str, stage: str = "final") -> float | None:
    """The metric of a record: "before" pruning, "after" it, or "final", retraining included.

    A rescored metric, such as `bare_test_error`, there is after pruning only, and counts as final.
    """
    if stage == "before":
        return record.before.get(metric)
    final = record.after
    if stage == "final" and record.retrained is not None and metric in record.retrained:
        final = record.retrained
    return final.get(metric)


def higher_is_better(metric: str) -> bool:
    """True for accuracies; errors, losses and perplexities are better low.

    Raises:
        ValueError: the name says neither.
    """
    if "accuracy" in metric:
        return True
    if any(word in metric for word in ("error", "entropy", "loss", "perplexity")):
        return False
    raise ValueError(
        f"Is a higher {metric!r} better? Name the metric with accuracy, error, loss, entropy or "
        f"perplexity."
    )


def numbered(record: Record, metric: str, stage: str = "final") -> float | None:
    """The score, where it is NaN the infinity that is worst."""
    value = score(record, metric, stage)
    if value is not None and math.isnan(value):
        return worst(higher=higher_is_better(metric))
    return value


def place_of(record: Record) -> Place:
    """Task, schedule and budget."""
    return record.task, record.schedule, place_text(record.budget, record.recipe_repr)


def place_fields(place: Place) -> Row:
    """A place as the first fields of a row: `task`, `schedule`, `density`, `budget` in words."""
    task, schedule, budget = place
    return {
        "task": task,
        "schedule": schedule,
        "density": density_asked(budget),
        "budget": words(budget),
    }


def _order(key: Key) -> tuple[Any, ...]:
    """Tasks and schedules by name, large budgets first, recipes by name."""
    task, schedule, budget, recipe = key
    return task, schedule, order(budget), recipe


def by_place(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """Finished records by place and recipe, in an order that files do not decide."""
    found: dict[Key, list[Record]] = {}
    for record in records:
        if record.status == "done":
            found.setdefault((*place_of(record), record.recipe), []).append(record)
    return {
        key: sorted(found[key], key=lambda r: (r.seed, r.id)) for key in sorted(found, key=_order)
    }


def scores_by_place(
    records: Sequence[Record], metric: str
) -> dict[Place, dict[str, dict[int, float]]]:
    """{place: {recipe: {seed: score}}}; of two records of one seed the first by identity.

    NaN stands as the infinity that is worst.
    """
    found: dict[Place, dict[str, dict[int, float]]] = {}
    for key, group in by_place(records).items():
        for record in group:
            value = numbered(record, metric)
            if value is not None:
                own = found.setdefault(key[:3], {}).setdefault(key[3], {})
                own.setdefault(record.seed, value)
    return found
