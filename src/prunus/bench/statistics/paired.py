"""What records say and how surely: pure functions from records to rows of tables.

A *place* is a task, a schedule and a budget; at a place every recipe has one record per seed. Seeds
are paired: the same seed means the same dense network and the same order of retraining samples.
"""

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prunus.bench.grid.budgets import density_asked, order, place_text, words
from prunus.bench.record import Record
from prunus.bench.statistics.intervals import bootstrap_interval, holm, paired, t_interval
from prunus.files import Row, Rows
from prunus.means import as_loss, mean, median, standard_error, worst

__all__ = [
    "COMPRESSIONS",
    "against_baselines",
    "differences",
    "group_rows",
    "higher_is_better",
    "pareto",
    "ranks",
    "score",
    "shrinkbench",
]

COMPRESSIONS = (2, 4, 8, 16, 32)  # Blalock et al. (2020), section 6
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


def _numbered(record: Record, metric: str, stage: str = "final") -> float | None:
    """The score, where it is NaN the infinity that is worst."""
    value = score(record, metric, stage)
    if value is not None and math.isnan(value):
        return worst(higher=higher_is_better(metric))
    return value


def place_of(record: Record) -> Place:
    """Task, schedule and budget."""
    return record.task, record.schedule, place_text(record.budget, record.recipe_repr)


def _place_fields(place: Place) -> Row:
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


def _groups(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """Finished records by place and recipe, in an order that files do not decide."""
    found: dict[Key, list[Record]] = {}
    for record in records:
        if record.status == "done":
            found.setdefault((*place_of(record), record.recipe), []).append(record)
    return {
        key: sorted(found[key], key=lambda r: (r.seed, r.id)) for key in sorted(found, key=_order)
    }


def group_rows(
    records: Sequence[Record], metric: str, *, level: float = 0.95, interval: str = "t"
) -> list[Row]:
    """One row per place and recipe: count, mean, median, standard error, interval, costs.

    Args:
        records: of any number of places; failed ones are left out.
        metric: a score's name.
        level: confidence level of the interval; none where a score is NaN or infinite.
        interval: "t" or "bootstrap"; the row says which.

    Returns:
        rows with the place, `recipe`, `seeds`, `mean`, `median`, `standard_error`, `low`, `high`,
        `interval`, `dense` (mean before pruning), `density_met` and the mean cost after pruning:
        `parameters`, `macs`, `bytes`, `latency` (s), and `compression`.
    """
    limits: dict[str, Callable[[Sequence[float], float], tuple[float, float] | None]] = {
        "t": t_interval,
        "bootstrap": bootstrap_interval,
    }
    rows = []
    for key, group in _groups(records).items():
        values = [v for r in group if (v := score(r, metric)) is not None]
        if not values:
            continue
        ends = limits[interval](values, level)
        n = len(values)
        rows.append(
            {
                **_place_fields(key[:3]),
                "recipe": key[3],
                "seeds": n,
                "mean": mean(values),
                "median": median(values),
                "standard_error": standard_error(values),
                "low": ends[0] if ends else None,
                "high": ends[1] if ends else None,
                "interval": f"{interval} {level:.0%}" if ends else "",
                "dense": _mean(score(r, metric, "before") for r in group),
                "density_met": _mean(r.density for r in group),
                "parameters": _mean(r.parameters[1] if r.parameters else None for r in group),
                "macs": _mean(r.macs[1] if r.macs else None for r in group),
                "bytes": _mean(r.bytes[1] if r.bytes else None for r in group),
                "latency": _mean(_latency(r) for r in group),
                "compression": _mean(
                    r.parameters[0] / r.parameters[1] if r.parameters else None for r in group
                ),
            }
        )
    return rows


def differences(
    records: Sequence[Record], metric: str, *, level: float = 0.95, alarm: float | None = None
) -> list[Row]:
    """Paired differences between all recipes at every place; Holm's family is the whole table.

    Args:
        records: of any number of places; failed ones are left out.
        metric: a score's name.
        level: confidence level of the intervals.
        alarm: probability that any difference is claimed where there is none; None for 1 − level.

    Returns:
        rows with the place, `recipe`, `other`, and of `recipe` − `other`: `seeds`, `mean`, `low`,
        `high`, `p`, `p_holm`, and `differs` (p_holm ≤ alarm).
    """
    alarm = 1 - level if alarm is None else alarm
    values = _values(records, metric)
    rows: list[Row] = []
    for place, recipes in values.items():
        names = list(recipes)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                found = paired(recipes[a], recipes[b], level)
                rows.append({**_place_fields(place), "recipe": a, "other": b, **found})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["differs"] = p <= alarm
    return rows


def against_baselines(
    records: Sequence[Record], metric: str, *, level: float = 0.95, alarm: float | None = None
) -> list[Row]:
    """Every recipe against each of its null baselines, seed by seed.

    The family of Holm's correction is the whole table, so with probability ≥ 1 − `alarm` no
    baseline is said to be beaten (or to be better) that is not.

    Args:
        records: of any number of places; failed ones are left out.
        metric: a score's name.
        level: confidence level of the intervals.
        alarm: probability that the table claims anything where there is nothing; None for
            1 − level.

    Returns:
        rows with the place, `recipe`, `baseline`, `seeds`, `advantage` (mean of the paired
        differences, positive where the recipe is better), `low`, `high`, `p`, `p_holm`, `beats`
        (the advantage is positive and p_holm ≤ alarm) and `beaten_by` (it is negative and p_holm ≤
        alarm). A baseline that was switched off has no row.
    """
    alarm = 1 - level if alarm is None else alarm
    sign = 1.0 if higher_is_better(metric) else -1.0
    by_id = {r.id: r for r in records if r.status == "done"}
    nulls = {
        r.extra["baselines"][name]
        for r in by_id.values()
        for name in ("random", "random-layers", "small-dense")
        if name in r.extra.get("baselines", {})
    }
    rows: list[Row] = []
    for key, group in _groups(records).items():
        names = dict.fromkeys(n for r in group for n in r.extra.get("baselines", {}))
        for name in names:
            own, other = {}, {}
            for record in group:
                partner = by_id.get(record.extra.get("baselines", {}).get(name, ""))
                mine = _numbered(record, metric)
                if partner is None or mine is None or record.id in nulls:
                    continue
                stage = "after" if partner.id == record.id else "final"
                theirs = _numbered(partner, metric, stage)
                if theirs is not None:
                    own[record.seed], other[record.seed] = sign * mine, sign * theirs
            if own:
                found = paired(own, other, level)
                found["advantage"] = found.pop("mean")
                rows.append({**_place_fields(key[:3]), "recipe": key[3], "baseline": name, **found})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["beats"] = p <= alarm and row["advantage"] > 0
        row["beaten_by"] = p <= alarm and row["advantage"] < 0
    return rows


def pareto(rows: Rows, cost: str, value: str, *, higher: bool) -> list[bool]:
    """Which rows no other row beats in one of `cost` (low) and `value` and equals in the other.

    Rows that lack either, or whose value is NaN or infinitely bad, are never on the front.
    """
    points = [
        None
        if r.get(cost) is None or r.get(value) is None
        else (r[cost], as_loss(r[value], higher=higher))
        for r in rows
    ]
    best, front = math.inf, [False] * len(points)
    known = [i for i, p in enumerate(points) if p is not None]
    known.sort(key=lambda i: points[i])  # type: ignore[arg-type, return-value]
    last: tuple[float, float] | None = None
    for i in known:
        point = points[i]
        assert point is not None  # only known points are in the list
        if point[1] < best or point == last:
            front[i] = True
            best, last = point[1], point
    return front


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
    for (task, schedule, budget), recipes in _values(records, metric).items():
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


def shrinkbench(rows: Rows, compressions: Sequence[float] = COMPRESSIONS) -> list[Row]:
    """Scores at fixed compression ratios of the whole network, from rows of `group_rows`.

    Between two measured ratios the mean is interpolated linearly in the logarithm of the ratio;
    beyond them there is no row. A measured ratio within 2 % counts as the ratio itself.

    Returns:
        rows with `task`, `schedule`, `recipe`, `compression`, `mean` and `how`: "measured" or
        "interpolated".

    References:
        Blalock et al. (2020), What is the state of neural network pruning?, section 6.
    """
    curves: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("compression") is not None:
            key = (row["task"], row["schedule"], row["recipe"])
            curves.setdefault(key, []).append((row["compression"], row["mean"]))
    found = []
    for (task, schedule, recipe), points in curves.items():
        points.sort()
        for ratio in compressions:
            value, how = _at(points, ratio)
            if value is not None:
                found.append(
                    {"task": task, "schedule": schedule, "recipe": recipe,
                     "compression": ratio, "mean": value, "how": how}
                )  # fmt: skip
    return found


def _values(records: Sequence[Record], metric: str) -> dict[Place, dict[str, dict[int, float]]]:
    """{place: {recipe: {seed: score}}}; of two records of one seed the first by identity.

    NaN stands as the infinity that is worst.
    """
    found: dict[Place, dict[str, dict[int, float]]] = {}
    for key, group in _groups(records).items():
        for record in group:
            value = _numbered(record, metric)
            if value is not None:
                own = found.setdefault(key[:3], {}).setdefault(key[3], {})
                own.setdefault(record.seed, value)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return mean(known) if known else None


def _latency(record: Record) -> float | None:
    if record.latency is None or "pruned" not in record.latency:
        return None
    return float(record.latency["pruned"]["median"])


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


def _at(points: Sequence[tuple[float, float]], ratio: float) -> tuple[float | None, str]:
    near = min(points, key=lambda p: abs(math.log(p[0] / ratio)))
    if abs(near[0] / ratio - 1) <= 0.02:
        return near[1], "measured"
    below = [p for p in points if p[0] < ratio]
    above = [p for p in points if p[0] > ratio]
    if not below or not above:
        return None, ""
    (x0, y0), (x1, y1) = below[-1], above[0]
    share = math.log(ratio / x0) / math.log(x1 / x0)
    return y0 + share * (y1 - y0), "interpolated"
