"""What records say and how surely: means, and differences seed by seed.

Pure functions from records to rows of tables; see `places` for what is compared with what. What
`fronts`, `places` and `ranks` hold can be had from here too, where documentation once named it.
"""

from collections.abc import Callable, Iterable, Sequence

from prunus.bench.record import Record
from prunus.bench.statistics.fronts import COMPRESSIONS, pareto, shrinkbench
from prunus.bench.statistics.intervals import bootstrap_interval, holm, paired, t_interval
from prunus.bench.statistics.places import (
    by_place,
    higher_is_better,
    numbered,
    place_fields,
    score,
    scores_by_place,
)
from prunus.bench.statistics.ranks import ranks
from prunus.files import Row
from prunus.means import mean, median, standard_error

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
    for key, group in by_place(records).items():
        values = [v for r in group if (v := score(r, metric)) is not None]
        if not values:
            continue
        ends = limits[interval](values, level)
        n = len(values)
        rows.append(
            {
                **place_fields(key[:3]),
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
    values = scores_by_place(records, metric)
    rows: list[Row] = []
    for place, recipes in values.items():
        names = list(recipes)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                found = paired(recipes[a], recipes[b], level)
                rows.append({**place_fields(place), "recipe": a, "other": b, **found})
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
    for key, group in by_place(records).items():
        names = dict.fromkeys(n for r in group for n in r.extra.get("baselines", {}))
        for name in names:
            own, other = {}, {}
            for record in group:
                partner = by_id.get(record.extra.get("baselines", {}).get(name, ""))
                mine = numbered(record, metric)
                if partner is None or mine is None or record.id in nulls:
                    continue
                stage = "after" if partner.id == record.id else "final"
                theirs = numbered(partner, metric, stage)
                if theirs is not None:
                    own[record.seed], other[record.seed] = sign * mine, sign * theirs
            if own:
                found = paired(own, other, level)
                found["advantage"] = found.pop("mean")
                rows.append({**place_fields(key[:3]), "recipe": key[3], "baseline": name, **found})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["beats"] = p <= alarm and row["advantage"] > 0
        row["beaten_by"] = p <= alarm and row["advantage"] < 0
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return mean(known) if known else None


def _latency(record: Record) -> float | None:
    if record.latency is None or "pruned" not in record.latency:
        return None
    return float(record.latency["pruned"]["median"])
