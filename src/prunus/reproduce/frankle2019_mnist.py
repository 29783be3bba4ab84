"""Frankle and Carbin (2019): lottery tickets of LeNet-300-100 against their controls."""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunus.bench.data.tasks import task
from prunus.bench.statistics.intervals import paired
from prunus.files import Row, write_text
from prunus.progress import progress_bar
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.frankle2019_trainings import BARRIER, ROLES, Protocol, Trainings
from prunus.reproduce.harness import Harness, with_interval

__all__ = [
    "FULL", "SMALL", "account", "claims", "judged", "kept_rows", "of_scale", "reproduce", "runs_of",
]  # fmt: skip

SMALL = Protocol(task="digits-mlp", epochs=25, check=10, exponents=(3, 7, 9, 12, 15), seeds=3)
FULL = Protocol(task="mnist-lenet300", epochs=11, check=100, exponents=tuple(range(1, 16)), seeds=5)


# What is said, by how much it is published, what is compared in whom at which round, by how much
# the first may exceed the second, and the digits of the answer.
CLAIMS = (
    ("a ticket at 21 % stops sooner than dense", "38 % sooner", "stop",
     "ticket", "dense", 7, 0.0, 0),
    ("a ticket at 13.5 % is more accurate than dense", "> 0.3 points", "error",
     "ticket", "dense", 9, 0.0, 2),
    ("a ticket at 3.6 % is at the dense level (within 0.3 points)", "level", "error",
     "ticket", "dense", 15, 0.3, 2),
    ("re-initialised at 21 % is less accurate than dense", "yes", "error",
     "dense", "re-initialised", 7, 0.0, 2),
    ("a ticket at 21 % stops sooner than re-initialised", "2.51 times", "stop",
     "ticket", "re-initialised", 7, 0.0, 0),
    ("a ticket at 21 % is more accurate than re-initialised", "0.5 points", "error",
     "ticket", "re-initialised", 7, 0.0, 2),
    ("one shot at 21 % stops sooner than dense", "yes", "stop",
     "one shot", "dense", 7, 0.0, 0),
    ("at 3.6 % iterative is more accurate than one shot", "yes", "error",
     "ticket", "one shot", 15, 0.0, 2),
)  # fmt: skip


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """Iterative magnitude pruning with rewinding, and what it must be held against.

    Args:
        scale: "full": LeNet-300-100 on MNIST, 15 rounds, five seeds; "small": an MLP on the
            digits, five rounds, three seeds.
        seed: the first.
        data_dir: folder with the data sets.
        progress: as in `progress_bar`.
        harness: where records lie; a seed that has its record is not run again.

    Raises:
        ValueError: workers or a cluster are asked for: rounds follow one another in this process.
    """
    return of_scale(
        scale, claims_alone=False, seed=seed, data_dir=data_dir, progress=progress, harness=harness
    )


def of_scale(
    scale: Scale,
    *,
    claims_alone: bool,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None,
) -> Reproduction:
    """The account of all trainings, or of those alone that claims compare; both share records.

    Raises:
        ValueError: workers or a cluster are asked for: rounds follow one another in this process.
    """
    harness = harness or Harness()
    if harness.executor != "local" or harness.workers not in (None, 1):
        raise ValueError(
            f"{_name(claims_alone)} runs in this process alone. Leave --executor, --workers and "
            f"--address out."
        )
    protocol = FULL if scale == "full" else SMALL
    rows = runs_of(protocol, seed, harness.records, data_dir, progress, claims_alone=claims_alone)
    return account(protocol, rows, claims_alone=claims_alone)


def _name(claims_alone: bool) -> str:
    return "frankle2019-claims" if claims_alone else "frankle2019-mnist"


def runs_of(
    protocol: Protocol,
    first: int,
    folder: Path | None,
    data_dir: Path | None,
    progress: bool | None,
    *,
    claims_alone: bool = False,
) -> list[Row]:
    """The rows of all seeds, from their records where `folder` has them.

    Each row is kept as it comes. What the claims are judged by comes first, for all seeds. A run
    that goes on makes the rounds again that lead to what is missing.

    Args:
        protocol: what is trained.
        first: the first of the seeds.
        folder: of the records; where None, nothing is kept.
        data_dir: folder with the data sets.
        progress: as in `progress_bar`.
        claims_alone: without the rows that no claim compares, also where records have them.
    """
    seeds = range(first, first + protocol.seeds)
    rows = {seed: kept_rows(protocol, seed, folder) for seed in seeds}
    todo = [
        (seed, role, n)
        for urgent in ((True,) if claims_alone else (True, False))
        for seed in seeds
        for role, n in _wanted(protocol)
        if (role, n) not in rows[seed] and ((role, n) in judged(protocol)) == urgent
    ]
    made: dict[int, Trainings] = {}
    with progress_bar("lottery tickets", len(todo), progress=progress) as advance:
        for seed, role, n in todo:
            if seed not in made:
                data = task(protocol.task).data(data_dir=data_dir)
                made[seed] = Trainings(protocol, seed, data)
            rows[seed][role, n] = made[seed].row(role, n)
            if folder is not None:
                own = {"protocol": asdict(protocol), "seed": seed, "rows": [*rows[seed].values()]}
                write_text(_path(protocol, seed, folder), json.dumps(own, indent=1) + "\n")
            advance(1)
    return [
        row
        for own in rows.values()
        for which, row in own.items()
        if not claims_alone or which in judged(protocol)
    ]


def kept_rows(protocol: Protocol, seed: int, folder: Path | None) -> dict[tuple[str, int], Row]:
    """{(role, round): row} of a seed, as far as `folder` has them."""
    if folder is None or not _path(protocol, seed, folder).exists():
        return {}
    kept = json.loads(_path(protocol, seed, folder).read_text(encoding="utf-8"))["rows"]
    return {(row["role"], row["n"]): row for row in kept}


def _path(protocol: Protocol, seed: int, folder: Path) -> Path:
    key = hashlib.sha256(json.dumps(asdict(protocol)).encode()).hexdigest()[:8]
    return folder / f"{key}-seed-{seed}.json"


def _wanted(protocol: Protocol) -> list[tuple[str, int]]:
    """The rows of a seed."""
    return [("dense", 0), *((role, n) for role in (*ROLES, BARRIER) for n in protocol.reported)]


def judged(protocol: Protocol) -> set[tuple[str, int]]:
    """The rows that claims compare, and all others of their tickets, which come with them."""
    named = {(role, n) for *_, one, other, n, _, _ in CLAIMS for role in (one, other)}
    tickets = {("ticket", n) for n in protocol.reported}
    return {("dense", 0), *named, *tickets} & set(_wanted(protocol))


def account(protocol: Protocol, rows: Sequence[Row], *, claims_alone: bool = False) -> Reproduction:
    """Tables and figures, of the records alone."""
    lines = [line for n in protocol.reported for line in _lines(rows, n)]
    found = claims(rows)
    return Reproduction(
        name=_name(claims_alone),
        title="Lottery tickets, their controls, and what the paper claims of them",
        paper="Frankle and Carbin (2019), The lottery ticket hypothesis: finding sparse, trainable "
        "neural networks, section 2 and figures 3 to 5",
        conditions=_conditions(protocol, claims_alone),
        rows=lines,
        figures=_figures(rows, _name(claims_alone)),
        tables={"At the step of least validation loss": [_texts(x) for x in lines],
                "Claims": found},
    )  # fmt: skip


def _conditions(protocol: Protocol, claims_alone: bool) -> list[str]:
    """How the numbers were made, and what was left out."""
    lines = [
        f"{task(protocol.task).title}; Adam {protocol.rate:g}, batches of {protocol.batch}, "
        f"{protocol.epochs} epochs, {protocol.seeds} seeds; the paper trains 50 000 steps, "
        f"five to ten times.",
        f"Rounds at 0.8ⁿ of each layer (0.9ⁿ of the output layer), n = "
        f"{', '.join(map(str, protocol.exponents))}; the paper takes every n.",
        f"Errors at the step of least validation loss, looked at every {protocol.check} steps "
        f"on a {protocol.held}th of the training samples."
        + ("" if claims_alone else
           f" Late: back to {protocol.early:.0%} of the training. Rate: weights stay, and the "
           f"training after that moment is repeated."),
        "Intervals are Student's at 95 % over seeds, network by network. Reproduced: the whole "
        "interval lies on the claim's side; contradicted: on the other.",
    ]  # fmt: skip
    if claims_alone:
        return [
            *lines,
            "Only what these claims compare was trained: tickets, and each control at the "
            "densities of its claims. Rewound late or in rate, shuffled masks, barriers and the "
            "other densities of controls are the rest of frankle2019-mnist.",
        ]
    return [
        *lines,
        "barrier: the largest test error between two trainings of the ticket with two orders "
        "of the samples, above the mean of both, in points.",
    ]


def _of(rows: Sequence[Row], role: str, n: int, key: str) -> dict[int, float]:
    """{seed: value}; the dense network stands for every round."""
    at = 0 if role == "dense" else n
    return {r["seed"]: r[key] for r in rows if (r["role"], r["n"]) == (role, at)}


def _lines(rows: Sequence[Row], n: int) -> list[Row]:
    lines = []
    for role in ROLES:
        error, stop = _of(rows, role, n, "error"), _of(rows, role, n, "stop")
        if not error:
            continue
        dense, base = _of(rows, "dense", n, "error"), _of(rows, "dense", n, "stop")
        gap = paired(error, dense)
        barrier = _of(rows, BARRIER, n, "barrier") if role == "ticket" else {}
        lines.append({
            "density": next(r["density"] for r in rows if (r["role"], r["n"]) == (role, n)),
            "role": role,
            "seeds": len(error),
            "error_percent": statistics.fmean(error.values()),
            "above_dense": gap["mean"], "low": gap["low"], "high": gap["high"],
            "stop_over_dense": statistics.fmean(stop[s] / base[s] for s in stop),
            "barrier": statistics.fmean(barrier.values()) if barrier else None,
        })  # fmt: skip
    return lines


def _texts(line: Row) -> dict[str, str]:
    return {
        "density": f"{line['density']:.1%}",
        "role": line["role"],
        "test error (%)": f"{line['error_percent']:.2f}",
        "above dense (points)": with_interval(line["above_dense"], line["low"], line["high"]),
        "stops at (of dense)": f"{line['stop_over_dense']:.2f}",
        "barrier (points)": "" if line["barrier"] is None else f"{line['barrier']:.2f}",
    }


def claims(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Every published claim with our number and a verdict."""
    found = []
    for text, published, key, one, other, n, bound, digits in CLAIMS:
        gap = paired(_of(rows, one, n, key), _of(rows, other, n, key))
        if gap["mean"] is None:
            continue
        ends = (
            ""
            if gap["low"] is None
            else f" ({gap['low']:+.{digits}f} to {gap['high']:+.{digits}f})"
        )
        found.append({
            "claim": text, "published": published,
            "measured": f"{gap['mean']:+.{digits}f}{ends} {'steps' if key == 'stop' else 'points'}",
            "verdict": verdict(gap, bound),
        })  # fmt: skip
    return found


def verdict(gap: Mapping[str, Any], bound: float) -> str:
    """Whether a difference is told to lie below `bound`, above it, or neither."""
    if gap["low"] is None:  # too few seeds, or all alike: the sign test
        if gap["p"] > 0.05:
            return "not told apart"
        return "reproduced" if gap["mean"] < bound else "contradicted"
    if gap["high"] < bound:
        return "reproduced"
    return "contradicted" if gap["low"] > bound else "not told apart"


def _figures(rows: Sequence[Row], name: str) -> dict[str, tuple[Any, list[Row]]]:
    made = {}
    for key, title in (("error", "test error (%)"), ("stop", "step of least validation loss")):
        drawn: list[Row] = []
        for role in ROLES:
            for n in sorted({r["n"] for r in rows if r["role"] == role}):
                values = _of(rows, role, n, key)
                density = next(r["density"] for r in rows if (r["role"], r["n"]) == (role, n))
                zero = dict.fromkeys(values, 0.0)
                ends = paired(values, zero)
                point = {"series": role, "kind": "measured", "density": density, key: ends["mean"]}
                if ends["low"] is not None:
                    point |= {"low": ends["low"], "high": ends["high"]}
                drawn.append(point)
        chart = figure(
            drawn, x="density", y=key, x_title="kept / total", y_title=title, x_scale="log"
        )
        made[f"{name}-{key}"] = (chart, drawn)
    return made
