"""Ramanujan et al. (2020): subnetworks of random weights, searched and not trained."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from prunus.allocation import Uniform
from prunus.bench.data.models import digits_cnn
from prunus.bench.data.sets import load_data
from prunus.bench.data.tasks import Task
from prunus.bench.data.train import TRAINER_VERSION, Training, fit
from prunus.bench.record import Record
from prunus.bench.statistics.intervals import paired, t_interval
from prunus.files import Row, Rows
from prunus.joint import EdgePopup
from prunus.recipe import Recipe
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.harness import Harness, carry_out, with_interval
from prunus.scores import Constant
from prunus.selection import RandomK

__all__ = ["account", "grids", "reproduce"]


def unbiased(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between, none with a bias."""
    parts: list[nn.Module] = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        parts += [nn.ReLU()] if i else []
        parts.append(nn.Linear(inputs, outputs, bias=False))
    return nn.Sequential(*parts)


def plain_cnn() -> nn.Sequential:
    """The digits CNN with its one bias at 0; untrained norms pass their inputs on."""
    model = digits_cnn()
    nn.init.zeros_(model.fc.bias)  # type: ignore[union-attr, arg-type]
    return model


def _task(name: str, title: str, data: str, model: Any, training: Training) -> Task:
    def train(
        model: nn.Module,
        data: Any,
        *,
        generator: Any,
        hold: Any = None,
        span: tuple[float, float] = (0.0, 1.0),
        progress: bool | None = None,
    ) -> nn.Module:
        return fit(
            model, data, training, generator=generator, hold=hold, span=span, progress=progress
        )  # fmt: skip

    return Task(
        name=f"prunus.reproduce.ramanujan2020:{name}",
        title=title,
        data=partial(load_data, data),
        model=model,
        train=train,
        retrain=train,
        definition=f"{training!r} by trainer {TRAINER_VERSION}",
    )


DIGITS = Training(epochs=30, learning_rate=3e-3, batch=64)
digits = _task("digits", "digits, 64-300-100-10", "digits",
               partial(unbiased, (64, 300, 100, 10)), DIGITS)  # fmt: skip
narrow = _task("narrow", "digits, 64-30-10", "digits", partial(unbiased, (64, 30, 10)), DIGITS)
cnn = _task("cnn", "digits, three convolutions", "digits", plain_cnn,
            Training(epochs=12, learning_rate=1e-2, batch=64))  # fmt: skip
mnist = _task("mnist", "MNIST, 784-300-100-10", "mnist", partial(unbiased, (784, 300, 100, 10)),
              Training(epochs=3, learning_rate=2e-3, batch=128))  # fmt: skip
TASKS = {own.name: own for own in (digits, narrow, cnn, mnist)}

FIXED: dict[str, Any] = {"anneal": False, "start": "fan-in"}
FORMS: dict[str, EdgePopup] = {
    "ours, layers share": EdgePopup(across=True),
    "ours": EdgePopup(),
    "fixed density": EdgePopup(**FIXED),
    "as published": EdgePopup.published(37),
}
VARIANTS: dict[str, EdgePopup] = {
    "fixed density": EdgePopup(**FIXED),
    "unscaled": EdgePopup(**FIXED, scale="none"),
    "scaled as in their code": EdgePopup(**FIXED, scale="published"),
    "normal": EdgePopup(**FIXED, weights="normal"),
    "normal, unscaled": EdgePopup(**FIXED, weights="normal", scale="none"),
    "uniform": EdgePopup(**FIXED, weights="uniform"),
    "unsigned": EdgePopup(**FIXED, weights="unsigned"),
    "ranked by s": EdgePopup(**FIXED, rank="signed"),
}
UNTRAINED, TRAINED = "random mask, untrained", "random mask, trained"
DENSE = "dense, trained"
NOTHING = ["random", "random-layers", "small-dense", "no-compensation", "no-retraining"]
Errors = dict[tuple[str, str, float], dict[int, float]]


@dataclass(frozen=True)
class _Plan:
    """What is searched in one task."""

    task: Task
    densities: tuple[float, ...]
    forms: Mapping[str, EdgePopup]
    samples: int
    seeds: int = 5
    start: bool = False  # from untrained weights: they are not all drawn by the search


SMALL = (
    _Plan(digits, (0.5, 0.1, 0.02), FORMS, 1346, 3),
    _Plan(digits, (0.1,), {n: VARIANTS[n] for n in ("unscaled", "unsigned")}, 1346, 3),
)
FULL = (
    _Plan(digits, (0.5, 0.1, 0.05, 0.02), FORMS, 1346),
    _Plan(digits, (0.1,), VARIANTS, 1346),
    _Plan(narrow, (0.5,), {"ours": FORMS["ours"]}, 1346),
    _Plan(cnn, (0.5, 0.1), {"ours": FORMS["ours"]}, 1346, start=True),
    _Plan(cnn, (0.1,), {
        "ours, layers share": FORMS["ours, layers share"],
        "ours, norms of the batch": EdgePopup(norms="batch"),
    }, 1346, start=True),
    _Plan(mnist, (0.5, 0.1), {"ours": EdgePopup(epochs=1)}, 60_000),
    _Plan(mnist, (0.1,), {
        "ours, layers share": EdgePopup(across=True, epochs=1),
        "as published": EdgePopup.published(1),
    }, 60_000),
)  # fmt: skip


def reproduce(
    *,
    scale: Scale,
    seed: int,
    data_dir: Path | None,
    progress: bool | None,
    harness: Harness | None = None,
) -> Reproduction:
    """Searched subnetworks beside random masks, trained random masks and the trained network.

    Args:
        scale: "full": the digits at four densities in every form and variant, MNIST and a small
            convolutional network, five seeds; "small": the digits at three densities, three seeds.
        seed: the first.
        data_dir: folder with the data sets.
        progress: as in `progress_board`.
        harness: where the records lie and who runs the cells; throw-away records by default.
    """
    records = carry_out(grids(scale, seed), harness, data_dir=data_dir, progress=progress)
    return account(scale, records)


def recipe_of(form: EdgePopup | None) -> Recipe:
    """The search, or None for a random mask."""
    selection = RandomK() if form is None else form
    return Recipe(score=Constant(), allocation=Uniform(minimum=0), selection=selection)


def grids(scale: Scale, seed: int = 0) -> list[Row]:
    """For each plan its searches, and a grid of random masks that are trained from the start.

    Where all weights are drawn by the search, it does not matter whose network it gets: such grids
    take the trained one and train nothing after.
    """
    found: list[Row] = []
    plans = _plans(scale)
    for own in dict.fromkeys(plan.task for plan in plans):
        mine = [plan for plan in plans if plan.task is own]
        for plan in mine:
            forms = [{"name": n, "recipe": repr(recipe_of(f))} for n, f in plan.forms.items()]
            found.append(_grid(plan, forms, "AtInit()" if plan.start else "none", seed))
        random = [{"name": "random mask", "recipe": repr(recipe_of(None))}]
        found.append(_grid(mine[0], random, "AtInit()", seed))
    return found


def _grid(plan: _Plan, recipes: list[dict[str, str]], schedule: str, seed: int) -> dict[str, Any]:
    return {
        "name": "ramanujan2020",
        "tasks": [plan.task.name],
        "recipes": recipes,
        "densities": list(plan.densities),
        "schedules": [schedule],
        "seeds": [seed + offset for offset in range(plan.seeds)],
        "calibration": plan.samples,
        "without": NOTHING,
    }


def _plans(scale: Scale) -> Sequence[_Plan]:
    return FULL if scale == "full" else SMALL


def account(scale: Scale, records: Sequence[Record]) -> Reproduction:
    """Tables, figures and verdicts, of finished records alone."""
    errors = errors_of(records)
    rows = [_row(errors, *key) for key in errors]
    plans = _plans(scale)
    tables = {
        f"Test error (%), {own.title}; dense and trained {_level(errors, own)}": _table(errors, own)
        for own in dict.fromkeys(plan.task for plan in plans)
        if (own.name, DENSE, 1.0) in errors  # of a part of the records, what they hold
    }
    return Reproduction(
        name="ramanujan2020",
        title="Subnetworks of random weights, searched and not trained",
        paper="Ramanujan et al. (2020), What's hidden in a randomly weighted neural network?, "
        "figures 3 to 6 in kind: theirs are convolutional networks on CIFAR-10 and ImageNet",
        conditions=[
            "Weights ±√(2/fan-in)/√density and no biases, except where a row says otherwise. "
            "Searches take 407 steps of 128 samples on the digits and one epoch on MNIST; networks "
            "are trained 30, 12 (convolutions) and 3 (MNIST) epochs.",
            "ours: Adam, rate 0.005 falling as a cosine, scores on one scale, the density falls to "
            "its end over the first half; `layers share`: one ranking for all layers. as "
            "published: SGD, rate 0.1, momentum 0.9, decay 5e-4, batches of 64, fixed density, "
            "fan-in times 1 − density as in their code; 14 epochs there, here as many passes as "
            "ours. fixed density: Adam on scores as they start there.",
            "Intervals are Student's at 95 % over seeds. Verdicts: paired by seed; holds, where "
            "the whole interval lies on the claim's side; does not hold, where on the other.",
        ],
        rows=rows,
        figures={"ramanujan2020-errors": _figure(rows)},
        tables={**tables, "Conclusions": claims(errors)},
    )


def errors_of(records: Sequence[Record]) -> Errors:
    """{(task, what, density): {seed: test error in %}}; the dense network stands at density 1."""
    found: Errors = {}

    def put(record: Record, what: str, density: float, scores: Mapping[str, float]) -> None:
        key = (record.task, what, density)
        found.setdefault(key, {})[record.seed] = 100 * scores["test_error"]

    for record in records:
        assert record.density_asked is not None  # grids of densities alone
        random = record.recipe == "random mask"
        put(record, DENSE, 1.0, record.before)
        put(record, UNTRAINED if random else record.recipe, record.density_asked, record.after)
        if random:
            assert record.retrained is not None  # trained from the start
            put(record, TRAINED, record.density_asked, record.retrained)
    return found


def _row(errors: Errors, task: str, what: str, density: float) -> dict[str, Any]:
    values = errors[task, what, density]
    gap = paired(values, errors[task, DENSE, 1.0])
    ends = t_interval(list(values.values())) or (None, None)
    return {
        "task": TASKS[task].title,
        "what": what,
        "density": density,
        "seeds": len(values),
        "error_percent": statistics.fmean(values.values()),
        "low": ends[0],
        "high": ends[1],
        "above_dense": gap["mean"],
    }


def _level(errors: Errors, task: Task) -> str:
    row = _row(errors, task.name, DENSE, 1.0)
    return with_interval(row["error_percent"], row["low"], row["high"])


def _table(errors: Errors, task: Task) -> list[dict[str, str]]:
    own = [key for key in errors if key[0] == task.name and key[1] != DENSE]
    densities = sorted({key[2] for key in own}, reverse=True)
    lines = []
    for what in dict.fromkeys(key[1] for key in own):
        line = {"": what}
        for density in densities:
            key = (task.name, what, density)
            row = _row(errors, *key) if key in errors else None
            line[f"{density:g}"] = (
                "–" if row is None else with_interval(row["error_percent"], row["low"], row["high"])
            )
        lines.append(line)
    return lines


@dataclass(frozen=True)
class _Claim:
    """One minus other lies below `bound` points at a density (`within`: above −bound, too)."""

    says: str
    task: Task
    density: float
    one: str
    other: str | float
    bound: float = 0.0
    within: bool = False


_CLAIMS = (
    *(
        _Claim("an untrained subnetwork is as good as the trained network (to 1 point)", own, d,
               form, DENSE, 1.0)
        for own, form in ((digits, "ours"), (mnist, "ours"), (cnn, "ours"))
        for d in (0.5, 0.1)
    ),
    _Claim("a random mask of the same weights does not work (60 % wrong)", digits, 0.1, UNTRAINED,
           60.0),
    *(
        _Claim("it beats weights that are trained on a random mask", own, d, "ours", TRAINED)
        for own in (digits, mnist, cnn)
        for d in (0.5, 0.1, 0.02)
    ),
    _Claim("scaling by the density is needed", digits, 0.1, "fixed density", "unscaled"),
    _Claim("their code's scaling is worse below one half", digits, 0.1, "fixed density",
           "scaled as in their code"),
    _Claim("constant weights without signs are far worse (5 points)", digits, 0.1, "fixed density",
           "unsigned", -5.0),
    _Claim("uniform weights are as good as signed constants (to 1 point)", digits, 0.1, "uniform",
           "fixed density", 1.0, True),
    _Claim("normal weights are worse than signed constants", digits, 0.1, "fixed density",
           "normal"),
    _Claim("ranking s in place of |s| makes no difference (1 point)", digits, 0.1, "ranked by s",
           "fixed density", 1.0, True),
    _Claim("a falling density is better where few are kept", digits, 0.02, "ours",
           "fixed density"),
    *(
        _Claim("layers that share are better where few are kept", own, d, "ours, layers share",
               "ours")
        for own, d in ((digits, 0.02), (digits, 0.05), (mnist, 0.1), (cnn, 0.1))
    ),
    _Claim("norms with the statistics of their batches are better than untrained ones", cnn, 0.1,
           "ours, norms of the batch", "ours"),
    *(
        _Claim("ours is better than the published form", own, d, "ours", "as published")
        for own, d in ((digits, 0.5), (digits, 0.1), (mnist, 0.1))
    ),
)  # fmt: skip


def claims(errors: Errors) -> list[dict[str, str]]:
    """Every conclusion that the records can judge, with the difference and a verdict."""
    found = []
    for claim in _CLAIMS:
        one = errors.get((claim.task.name, claim.one, claim.density))
        other: Mapping[int, float] | None
        if isinstance(claim.other, float):  # above a number
            one, other = (None, None) if one is None else (dict.fromkeys(one, claim.other), one)
        else:
            at = 1.0 if claim.other == DENSE else claim.density
            other = errors.get((claim.task.name, claim.other, at))
        if one is None or other is None:
            continue
        gap = paired(one, other)
        found.append({
            "conclusion": claim.says,
            "where": f"{claim.task.title}, {claim.density:g}",
            "difference (points)": with_interval(gap["mean"], gap["low"], gap["high"]),
            "verdict": _verdict(gap, claim.bound, within=claim.within),
        })  # fmt: skip
    return found


def _verdict(gap: Mapping[str, Any], bound: float, *, within: bool) -> str:
    """Whether the interval lies below the bound, beyond it, or neither."""
    low, high = gap["low"], gap["high"]
    if low is None:  # too few seeds, or all alike: the sign test
        if gap["p"] > 0.05:
            return "not told apart"
        low = high = gap["mean"]
    if high < bound and (not within or low > -bound):
        return "holds"
    outside = low > bound or (within and high < -bound)
    return "does not hold" if outside else "not told apart"


def _figure(rows: Rows) -> Any:
    """Test error against density, a panel for each network."""
    shown = (*FORMS, TRAINED)
    drawn = []
    for row in rows:
        if row["what"] not in shown:
            continue
        ends = {} if row["low"] is None else {"low": max(row["low"], 0.01), "high": row["high"]}
        drawn.append({"panel": row["task"], "kind": "measured", "series": row["what"],
                      "density": row["density"], "error": row["error_percent"],
                      **ends})  # fmt: skip
    chart = figure(
        drawn, x="density", y="error", x_title="kept / total", y_title="test error (%)",
        series="series", facet="panel", x_scale="log", y_scale="log",
    )  # fmt: skip
    return chart, drawn
