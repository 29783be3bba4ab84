"""The tables of a report, from records alone: equal records give equal rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.bench.grid.cell import BASELINES
from prunus.bench.record import Record
from prunus.bench.statistics.fronts import pareto, shrinkbench
from prunus.bench.statistics.paired import against_baselines, differences, group_rows
from prunus.bench.statistics.places import higher_is_better
from prunus.bench.statistics.ranks import ranks
from prunus.check import unknown
from prunus.files import Row
from prunus.report.headline import is_share

__all__ = ["COSTS", "Tables", "tables"]

COSTS = ("parameters", "macs", "bytes", "latency")


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What a benchmark's records say.

    Attributes:
        metric: the score that is compared.
        higher: whether a higher one is better.
        level: confidence level.
        methods: rows of `group_rows`, intervals of shares cut at 0 and 1, with `not_beaten`
            (baselines that the recipe does not beat beyond the interval; None where the records
            hold none) and `front_COST` (on the Pareto front of its task and schedule).
        baselines: rows of `against_baselines`.
        differences: rows of `differences`.
        ranks: of `ranks`.
        shrinkbench: rows of `shrinkbench`.
        failures: one row per failed cell, with the last line of its traceback.
        facts: versions, hosts and settings, with how many records have each.
        says: the main findings in words, a sentence each.
    """

    metric: str
    higher: bool
    level: float
    methods: Sequence[Row]
    baselines: Sequence[Row]
    differences: Sequence[Row]
    ranks: Row
    shrinkbench: Sequence[Row]
    failures: Sequence[Row]
    facts: Sequence[Row]
    says: Sequence[str]


def tables(
    records: Sequence[Record], metric: str, *, level: float = 0.95, interval: str = "t"
) -> Tables:
    """All tables of the records of a benchmark.

    Args:
        records: each cell once.
        metric: as the task's `evaluate` names it.
        level: confidence level of the intervals. What is claimed to beat a baseline and what is
            claimed to differ are two families of tests; each is held to (1 − level)/2, so that the
            page claims anything false with a probability of at most 1 − level.
        interval: "t" or "bootstrap", of the means.

    Raises:
        ValueError: no finished record, or a metric that none has.
    """
    done = [r for r in records if r.status == "done"]
    if not done:
        raise ValueError(f"None of {len(records)} records is of a finished run.")
    known = {name for r in done for name in r.after}
    if metric not in known:
        raise unknown("metric", metric, known)
    higher = higher_is_better(metric)
    methods = group_rows(done, metric, level=level, interval=interval)
    for row in methods:
        if row["low"] is not None and is_share(metric, [row["mean"]]):
            row["low"], row["high"] = max(0.0, row["low"]), min(1.0, row["high"])
    alarm = (1 - level) / 2
    baselines = against_baselines(done, metric, level=level, alarm=alarm)
    beaten: dict[tuple[Any, ...], list[str]] = {}
    for row in baselines:
        names = beaten.setdefault(_key(row), [])
        if not row["beats"]:
            names.append(row["baseline"])
    for row in methods:
        names = beaten.get(_key(row))  # type: ignore[assignment]
        row["not_beaten"] = None if names is None else ", ".join(names) or "none"
    for cost in COSTS:
        for place in dict.fromkeys((r["task"], r["schedule"]) for r in methods):
            own = [r for r in methods if (r["task"], r["schedule"]) == place]
            for row, front in zip(own, pareto(own, cost, "mean", higher=higher), strict=True):
                row[f"front_{cost}"] = front
    return Tables(
        metric=metric,
        higher=higher,
        level=level,
        methods=methods,
        baselines=baselines,
        differences=differences(done, metric, level=level, alarm=alarm),
        ranks=ranks(done, metric, level=level),
        shrinkbench=shrinkbench(methods),
        failures=_failures(records),
        facts=_facts(done),
        says=_says(baselines),
    )


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["schedule"], row["budget"], row["recipe"]


def _failures(records: Sequence[Record]) -> list[Row]:
    failed = [r for r in records if r.status == "failed"]
    return [
        {
            "task": r.task,
            "recipe": r.recipe,
            "budget": r.budget,
            "schedule": r.schedule,
            "seed": r.seed,
            "error": (r.traceback.strip().splitlines() or [""])[-1],
        }
        for r in sorted(failed, key=lambda r: (r.task, r.recipe, r.budget, r.seed, r.id))
    ]


def _facts(records: Sequence[Record]) -> list[Row]:
    counts: dict[tuple[str, str], int] = {}
    for record in records:
        facts = {
            **{f"version of {k}": v for k, v in record.versions.items()},
            **{f"host: {k}": v for k, v in record.host.items() if v not in ("", None)},
            **{f"setting: {k}": v for k, v in record.extra.get("settings", {}).items()},
        }
        for name, value in facts.items():
            key = (name, str(value))
            counts[key] = counts.get(key, 0) + 1
    return [
        {"fact": name, "value": value, "records": count}
        for (name, value), count in sorted(counts.items())
    ]


def _says(rows: Sequence[Row]) -> list[str]:
    """For every baseline: by how many, by whom always, and by whom never it is beaten."""
    said = []
    for name, words in BASELINES.items():
        own = [row for row in rows if row["baseline"] == name]
        if not own:
            continue
        wins = sum(row["beats"] for row in own)
        by: dict[str, list[bool]] = {}
        for row in own:
            by.setdefault(row["recipe"], []).append(row["beats"])
        always = [recipe for recipe, found in by.items() if all(found)]
        never = [recipe for recipe, found in by.items() if not any(found)]
        worse = [row for row in own if row["beaten_by"]]
        text = f"**{name}** ({words}) is beaten beyond the interval in {wins} of {len(own)} places"
        if always:
            text += f", everywhere by {', '.join(always)}"
        if never:
            text += f", nowhere by {', '.join(never)}"
        if worse:
            text += f"; it is itself better beyond the interval in {len(worse)} of them"
        said.append(f"{text}.")
    return said
