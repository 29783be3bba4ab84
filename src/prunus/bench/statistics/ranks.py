"""Mean ranks of recipes, and which of them the data do not tell apart."""

import functools
import math
import statistics
from collections.abc import Sequence

from prunus.bench.record import Record
from prunus.bench.statistics.places import higher_is_better, scores_by_place
from prunus.files import Row
from prunus.means import as_loss

__all__ = ["ranks"]


def ranks(records: Sequence[Record], metric: str, *, level: float = 0.95) -> Row:
    """Mean ranks of the recipes (1 is best) and the critical difference of Nemenyi's test.

    A block is a task, a schedule and a seed. Recipes are ranked at each budget, ties get the mean
    rank, NaN the worst, and ranks are averaged over budgets within a block, which can only narrow
    their spread: the test is conservative. Recipes that lack a block's record are left out.

    Returns:
        `recipes` (rows of `recipe`, `rank`, best first), `blocks`, `critical_difference` (None
        with fewer than two blocks or recipes), `cliques`: runs of recipes, best first, that it
        does not tell apart.

    References:
        Demšar (2006), Statistical comparisons of classifiers over multiple data sets, section 3.2.
    """
    higher = higher_is_better(metric)
    cells: dict[tuple[str, str, int, str], dict[str, float]] = {}
    for (task, schedule, budget), recipes in scores_by_place(records, metric).items():
        for name, seeds in recipes.items():
            for seed, value in seeds.items():
                cell = cells.setdefault((task, schedule, seed, budget), {})
                cell[name] = as_loss(value, higher=higher)
    names = sorted(set.intersection(*(set(c) for c in cells.values()))) if cells else []
    blocks: dict[tuple[str, str, int], list[list[float]]] = {}
    for (task, schedule, seed, _), found in cells.items():
        own = _ranked([found[name] for name in names])
        blocks.setdefault((task, schedule, seed), []).append(own)
    k, n = len(names), len(blocks)
    means = [
        statistics.fmean(statistics.fmean(r[i] for r in block) for block in blocks.values())
        for i in range(k)
    ]
    order = sorted(range(k), key=lambda i: (means[i], names[i]))
    rows = [{"recipe": names[i], "rank": means[i]} for i in order]
    reach = None
    if k > 1 and n > 1:
        reach = _range_quantile(level, k) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    return {
        "recipes": rows,
        "blocks": n,
        "critical_difference": reach,
        "cliques": [] if reach is None else _cliques(rows, reach),
    }


@functools.lru_cache(maxsize=64)
def _range_quantile(level: float, k: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(level, k, math.inf))


def _ranked(values: Sequence[float]) -> list[float]:
    """Ranks from 1 for the lowest; equal values share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def _cliques(rows: Sequence[Row], reach: float) -> list[list[str]]:
    """The longest runs whose ends differ by less than `reach`, none inside another."""
    found: list[tuple[int, int]] = []
    for i in range(len(rows)):
        j = i
        while j + 1 < len(rows) and rows[j + 1]["rank"] - rows[i]["rank"] < reach:
            j += 1
        if j > i and (not found or j > found[-1][1]):
            found.append((i, j))
    return [[row["recipe"] for row in rows[i : j + 1]] for i, j in found]
