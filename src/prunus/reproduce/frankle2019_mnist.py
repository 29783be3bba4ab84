"""Frankle and Carbin (2019): lottery tickets of LeNet-300-100 against their controls."""

import copy
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.bench.data.sets import Dataset
from prunus.bench.data.tasks import fresh_model, task
from prunus.bench.data.train import Training, evaluate, fit
from prunus.bench.grid.tickets import OTHER, shuffled
from prunus.bench.statistics.intervals import paired
from prunus.engine import prune
from prunus.files import write_text
from prunus.progress import progress_bar
from prunus.recipe import Recipe
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.harness import Harness, with_interval
from prunus.rng import generator_for
from prunus.surgery.masked import apply_masks, hold
from prunus.training import connection

__all__ = ["FULL", "SMALL", "Protocol", "account", "claims", "densities", "reproduce", "runs_of"]

ROLES = ("ticket", "late-rewound", "rate-rewound", "one shot", "re-initialised", "shuffled")
Row = dict[str, Any]
Masks = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is trained, and how.

    Attributes:
        task: whose network and data.
        epochs: of every training.
        check: steps between two looks at the validation loss.
        exponents: after each round a layer keeps 0.8ⁿ of its weights, the output layer 0.9ⁿ.
        reported: those of them at which one shot, controls and barriers are trained too.
        seeds: of initial weights and orders.
        early: share of a training to which the late-rewound ticket returns.
        batch: samples per step.
        rate: of Adam.
        held: one in so many training samples validates.
    """

    task: str
    epochs: int
    check: int
    exponents: tuple[int, ...]
    reported: tuple[int, ...] = (3, 7, 9, 12, 15)
    seeds: int
    early: float = 0.02
    batch: int = 60
    rate: float = 1.2e-3
    held: int = 12


SMALL = Protocol(task="digits-mlp", epochs=25, check=10, exponents=(3, 7, 9, 12, 15), seeds=3)
FULL = Protocol(task="mnist-lenet300", epochs=11, check=100, exponents=tuple(range(1, 16)), seeds=5)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Trained:
    """One training: where its validation loss was least, and what it left."""

    stop: int
    error: float
    last_error: float
    state: Mapping[str, Tensor]
    snapshot: Mapping[str, Tensor]


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
    harness = harness or Harness()
    if harness.executor != "local" or harness.workers not in (None, 1):
        raise ValueError(
            "frankle2019-mnist runs in this process alone. Leave --executor, --workers and "
            "--address out."
        )
    protocol = FULL if scale == "full" else SMALL
    return account(protocol, runs_of(protocol, seed, harness.records, data_dir, progress))


def runs_of(
    protocol: Protocol,
    first: int,
    folder: Path | None,
    data_dir: Path | None,
    progress: bool | None,
) -> list[Row]:
    """The rows of all seeds, from their records where `folder` has them."""
    key = hashlib.sha256(json.dumps(asdict(protocol)).encode()).hexdigest()[:8]
    rows: list[Row] = []
    trainings = 1 + 3 * len(protocol.exponents) + 4 * len(protocol.reported)
    with progress_bar("lottery tickets", protocol.seeds * trainings, progress=progress) as advance:
        for seed in range(first, first + protocol.seeds):
            path = None if folder is None else folder / f"{key}-seed-{seed}.json"
            if path is not None and path.exists():
                rows += json.loads(path.read_text(encoding="utf-8"))["rows"]
                advance(trainings)
                continue
            own = _seed(protocol, seed, data_dir, advance)
            rows += own
            if path is not None:
                kept = {"protocol": asdict(protocol), "seed": seed, "rows": own}
                write_text(path, json.dumps(kept, indent=1) + "\n")
    return rows


def densities(protocol: Protocol, n: int) -> dict[str, float]:
    """What each layer keeps after the round `n`; the output layer loses half as fast."""
    names = [name for name, m in task(protocol.task).model().named_modules() if _linear(m)]
    return {name: (0.9 if name == names[-1] else 0.8) ** n for name in names}


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _seed(
    protocol: Protocol, seed: int, data_dir: Path | None, advance: Callable[[int], None]
) -> list[Row]:
    """All trainings of one seed."""
    data = task(protocol.task).data(data_dir=data_dir)
    train = _Trainer(protocol, data, seed, advance)
    start = train.fresh(seed)
    dense = train(start, {}, "dense")
    rows = [_row(seed, "dense", 0, 1.0, dense)]
    begins = {"ticket": start, "late-rewound": dense.snapshot, "rate-rewound": None}
    spans = {"ticket": 0.0, "late-rewound": protocol.early, "rate-rewound": protocol.early}
    for role, begin in begins.items():
        last = dense
        for n in protocol.exponents:
            masks, density = train.masks(last.state, n)
            state = last.state if begin is None else begin
            last = train(state, masks, f"{role} {n}", early=spans[role])
            if n in protocol.reported:
                rows.append(_row(seed, role, n, density, last))
                if role == "ticket":
                    rows += _controls(train, seed, n, density, start, masks, last)
    for n in protocol.reported:
        masks, density = train.masks(dense.state, n)
        rows.append(_row(seed, "one shot", n, density, train(start, masks, f"one shot {n}")))
    return rows


def _controls(
    train: "_Trainer",
    seed: int,
    n: int,
    density: float,
    start: Mapping[str, Tensor],
    masks: Masks,
    ticket: _Trained,
) -> Iterator[Row]:
    """The ticket's mask on fresh weights, its weights under another mask, and a second training."""
    fresh = train(train.fresh(seed + OTHER), masks, f"re-initialised {n}")
    yield _row(seed, "re-initialised", n, density, fresh)
    other = shuffled(masks, generator_for(seed, "shuffled masks", n))
    yield _row(seed, "shuffled", n, density, train(start, other, f"shuffled {n}"))
    twin = train(start, masks, f"twin {n}")
    one, other_end = train.model(ticket.state), train.model(twin.state)
    line = connection(one, other_end, lambda m: 100 * evaluate(m, train.data)["test_error"])
    yield {"seed": seed, "role": "barrier", "n": n, "density": density, "barrier": line.barrier}


def _row(seed: int, role: str, n: int, density: float, found: _Trained) -> Row:
    return {
        "seed": seed, "role": role, "n": n, "density": density, "stop": found.stop,
        "error": found.error, "last_error": found.last_error,
    }  # fmt: skip


class _Trainer:
    """Trains from given weights under given masks, watching the validation loss."""

    def __init__(
        self, protocol: Protocol, data: Dataset, seed: int, advance: Callable[[int], None]
    ) -> None:
        """Set every `held`-th training sample apart, drawn by the seed."""
        self.protocol, self.data, self.seed, self._advance = protocol, data, seed, advance
        order = torch.randperm(len(data.x_train), generator=generator_for(seed, "validation"))
        cut = len(order) // protocol.held
        apart, rest = order[:cut], order[cut:]
        self._train = replace(data, x_train=data.x_train[rest], y_train=data.y_train[rest])
        self._valid = replace(data, x_test=data.x_train[apart], y_test=data.y_train[apart])
        self._training = Training(
            epochs=protocol.epochs, learning_rate=protocol.rate, batch=protocol.batch,
            decay="constant",
        )  # fmt: skip
        self._net = fresh_model(task(protocol.task), seed)

    def fresh(self, seed: int) -> dict[str, Tensor]:
        """Initial weights: Gaussian Glorot, biases zero."""
        generator = generator_for(seed, "Glorot", self.protocol.task)
        for module in self._net.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        return copy.deepcopy(self._net.state_dict())

    def model(self, state: Mapping[str, Tensor]) -> nn.Module:
        """A network with these weights."""
        model = copy.deepcopy(self._net)
        model.load_state_dict(dict(state))
        return model

    def masks(self, state: Mapping[str, Tensor], n: int) -> tuple[Masks, float]:
        """Masks of the largest trained weights; those that are zero already go first."""
        found = prune(self.model(state), Recipe(), densities(self.protocol, n), progress=False)
        return found.masks, found.cost_after.density

    def __call__(
        self, start: Mapping[str, Tensor], masks: Masks, name: str, *, early: float = 0.0
    ) -> _Trained:
        """Train the share from `early` on; the order of the samples follows `name`."""
        model = self.model(start)
        apply_masks(model, masks)
        steps = self.protocol.epochs * (len(self._train.x_train) // self.protocol.batch)
        keep = round(self.protocol.early * steps)
        done, best, stop, error = 0, float("inf"), 0, float("nan")
        snapshot: Mapping[str, Tensor] = {}

        def look(model: nn.Module) -> None:
            nonlocal done, best, stop, error, snapshot
            done += 1
            if done == keep:
                snapshot = copy.deepcopy(model.state_dict())
            if done % self.protocol.check == 0:
                loss = evaluate(model, self._valid)["cross_entropy"]
                if loss < best:
                    best, stop = loss, done
                    error = 100 * evaluate(model, self.data)["test_error"]

        fit(
            model, self._train, self._training,
            generator=generator_for(self.seed, "order", name),
            hold=lambda optimizer: hold(model, masks, optimizer) if masks else None,
            after_step=look, span=(early, 1.0), progress=False,
        )  # fmt: skip
        self._advance(1)
        last = 100 * evaluate(model, self.data)["test_error"]
        state = copy.deepcopy(model.state_dict())
        return _Trained(stop=stop, error=error, last_error=last, state=state, snapshot=snapshot)


def account(protocol: Protocol, rows: Sequence[Row]) -> Reproduction:
    """Tables and figures, of the records alone."""
    lines = [line for n in protocol.reported for line in _lines(rows, n)]
    found = claims(rows)
    return Reproduction(
        name="frankle2019-mnist",
        title="Lottery tickets, their controls, and what the paper claims of them",
        paper="Frankle and Carbin (2019), The lottery ticket hypothesis: finding sparse, trainable "
        "neural networks, section 2 and figures 3 to 5",
        conditions=[
            f"{task(protocol.task).title}; Adam {protocol.rate:g}, batches of {protocol.batch}, "
            f"{protocol.epochs} epochs, {protocol.seeds} seeds; the paper trains 50 000 steps, "
            f"five to ten times.",
            f"Rounds at 0.8ⁿ of each layer (0.9ⁿ of the output layer), n = "
            f"{', '.join(map(str, protocol.exponents))}; the paper takes every n.",
            f"Errors at the step of least validation loss, looked at every {protocol.check} steps "
            f"on a {protocol.held}th of the training samples. Late: back to {protocol.early:.0%} "
            f"of the training. Rate: weights stay, and the training after that moment is repeated.",
            "Intervals are Student's at 95 % over seeds, network by network. Reproduced: the whole "
            "interval lies on the claim's side; contradicted: on the other.",
            "barrier: the largest test error between two trainings of the ticket with two orders "
            "of the samples, above the mean of both, in points.",
        ],
        rows=lines,
        figures=_figures(rows),
        tables={"At the step of least validation loss": [_texts(x) for x in lines],
                "Claims": found},
    )  # fmt: skip


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
        barrier = _of(rows, "barrier", n, "barrier") if role == "ticket" else {}
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
    for text, published, key, one, other, n, bound, digits in (
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
    ):  # fmt: skip
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


def _figures(rows: Sequence[Row]) -> dict[str, tuple[Any, list[Row]]]:
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
        made[f"frankle2019-mnist-{key}"] = (chart, drawn)
    return made
