"""Pensia et al. (2020): how wide a random network must be, by theorem, law and measurement."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.bench.data.tasks import task
from prunus.bench.statistics.intervals import t_interval
from prunus.files import Row
from prunus.progress import progress_bar
from prunus.report.figure import figure
from prunus.reproduce import Reproduction, Scale
from prunus.reproduce.pensia2020_networks import networks
from prunus.rng import generator_for
from prunus.theory.logarithmic import decompose, hyperbolic, samples_needed
from prunus.theory.subset_sum import (
    construct,
    draw_items,
    failure_probability,
    items_needed,
    largest_error,
    nearest_subset,
    single_items_needed,
)

__all__ = ["FULL", "SMALL", "Protocol", "account", "reproduce", "rows_of"]

SIZES = (6, 8, 8, 4)  # the target of the construction, spectral norms 1
LAW = (
    ("uniform", 8, 0.01), ("uniform", 10, 0.003), ("uniform", 12, 0.001), ("uniform", 16, 1e-4),
    ("product", 8, 0.01), ("product", 12, 0.001), ("product", 16, 1e-4),
)  # fmt: skip
LAW_DRAWS = 2000
DELTA = 0.1


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is built.

    Attributes:
        items: per slot of the small target.
        draws: random networks for each number of items; at least 2.
        trained: the same, around each trained network.
        points: inputs on the unit sphere that measure.
        networks: {task: items per slot} of trained networks that are built.
        precisions: ε of the sums of a logarithmic number of samples.
        sums: draws for each ε.
    """

    items: tuple[int, ...]
    draws: int
    trained: int = 5
    points: int
    networks: Mapping[str, tuple[int, ...]]
    precisions: tuple[float, ...]
    sums: int


SMALL = Protocol(
    items=(4, 8, 12, 14), draws=5, points=5000, networks={"digits-mlp": (3, 4, 6, 8)},
    precisions=(0.1, 0.01), sums=100,
)  # fmt: skip
FULL = Protocol(
    items=(4, 8, 12, 14, 16), draws=7, points=20_000,
    networks={
        "digits-mlp": (3, 4, 6, 8), "digits-cnn": (4, 6, 8), "mnist-lenet300": (4, 6, 8),
    },
    precisions=(0.1, 0.01, 0.001, 0.0001), sums=200,
)  # fmt: skip


def reproduce(
    *, scale: Scale, seed: int, data_dir: Path | None, progress: bool | None
) -> Reproduction:
    """The law of subset sums, the construction and its bound, and trained networks built.

    Args:
        scale: "full": more items and draws, a convolutional network, LeNet-300-100 on MNIST.
        seed: of every draw.
        data_dir: folder with the data sets.
        progress: as in `progress_bar`.
    """
    protocol = FULL if scale == "full" else SMALL
    return account(rows_of(protocol, seed, data_dir, progress))


def rows_of(
    protocol: Protocol, seed: int, data_dir: Path | None, progress: bool | None
) -> list[Row]:
    """Every measurement, one flat row each."""
    jobs: list[Callable[[], Row]] = [
        *(partial(_law, *case, seed) for case in LAW),
        *(partial(_samples, eps, protocol.sums, seed) for eps in protocol.precisions),
        *(
            partial(_built, n, draw, assign, protocol.points, seed)
            for n in protocol.items
            for draw in range(protocol.draws)
            for assign in (False, True)
        ),
    ]
    count = len(jobs) + 2 * protocol.trained * sum(map(len, protocol.networks.values()))
    rows = []
    with progress_bar("building networks", count, progress=progress) as advance:
        for job in jobs:
            rows.append(job())
            advance(1)
        for name, items in protocol.networks.items():
            for row in networks(name, items, protocol.trained, seed, data_dir):
                rows.append(row)
                advance(1)
    return rows


def _law(items: str, n: int, eps: float, seed: int) -> Row:
    """How often no subset comes within ε of 1/4, beside the law."""
    drawn = draw_items(items, LAW_DRAWS, n, generator=generator_for(seed, "law", items, n))
    _, error = nearest_subset(drawn, torch.full((LAW_DRAWS,), 0.25, dtype=torch.float64))
    return {
        "part": "law", "items": items, "n": n, "eps": eps,
        "measured": float((error > eps).double().mean()),
        "law": failure_probability(n, eps, 0.25, items),
    }  # fmt: skip


def _samples(eps: float, draws: int, seed: int) -> Row:
    """Samples with which all but a share δ of draws meet a weight, for each way to add them up."""
    theory = samples_needed(eps, DELTA)
    needed: dict[str, list[int]] = {"interval": [], "largest": []}
    failed = 0
    for draw in range(draws):
        generator = generator_for(seed, "hyperbolic", f"{eps:g}", draw)
        weight = torch.rand(1, dtype=torch.float64, generator=generator)
        samples = hyperbolic(theory, eps, generator=generator)
        for rule, found in needed.items():
            met = [
                m
                for m in range(1, theory + 1)
                if bool(decompose(samples[:m], weight, eps, rule=rule).met)
            ]
            # The least number from which on more samples do not spoil it.
            last = max(set(range(theory + 1)) - set(met))
            found.append(last + 1)
        failed += needed["interval"][-1] > theory
    quantile = {rule: sorted(f)[math.ceil((1 - DELTA) * draws) - 1] for rule, f in needed.items()}
    return {
        "part": "samples", "eps": eps, "theory": theory, "interval": quantile["interval"],
        "largest": quantile["largest"], "failed": failed / draws,
        "subset": items_needed(eps, DELTA), "single": single_items_needed(eps, DELTA),
    }  # fmt: skip


def _built(n: int, draw: int, assign: bool, points: int, seed: int) -> Row:
    """A random target inside a random network: what came out, and the bound from what was built."""
    source = generator_for(seed, "target network", draw)
    weights = []
    for wide, out in itertools.pairwise(SIZES):
        drawn = torch.randn(out, wide, dtype=torch.float64, generator=source)
        weights.append(drawn / torch.linalg.matrix_norm(drawn, 2))
    made = construct(weights, n, generator=generator_for(seed, "network", draw, n), assign=assign)
    x = torch.randn(points, SIZES[0], dtype=torch.float64, generator=source)
    x /= x.norm(dim=1, keepdim=True)
    with torch.no_grad():
        output = float((made.network()(x) - _answer(weights, x)).norm(dim=1).max())
    copies = [1 if block.nonnegative else 2 for block in made.blocks]
    return {
        "part": "construction", "n": n, "draw": draw, "assigned": assign,
        "weight": max(block.error for block in made.blocks), "output": output,
        "bound": made.error_bound(1.0),
        "law": max(block.scale * largest_error(n, c * block.target.numel(), "product")
                   for c, block in zip(copies, made.blocks, strict=True)),
    }  # fmt: skip


def _answer(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    for i, weight in enumerate(weights):
        x = x @ weight.T
        x = x.relu() if i < len(weights) - 1 else x
    return x


def account(rows: Sequence[Row]) -> Reproduction:
    """Tables, the figure and verdicts, of the measurements alone."""
    tables = {
        "P(no subset within ε of 1/4)": [
            {"items": r["items"], "n": str(r["n"]), "ε": f"{r['eps']:g}",
             "measured": f"{r['measured']:.3f}", "law": f"{r['law']:.3f}"}
            for r in _of(rows, "law")
        ],
        "Samples per weight at δ = 0.1": [
            {"ε": f"{r['eps']:g}", "theorem, one per interval": str(r["theory"]),
             "needed so": str(r["interval"]), "largest that fits": str(r["largest"]),
             "failures at the theorem's": f"{r['failed']:.3f}",
             "subset sum, law": str(r["subset"]), "single sample": str(r["single"])}
            for r in _of(rows, "samples")
        ],
        "Target 6-8-8-4, spectral norms 1 (geometric means)": _construction_table(rows),
    }  # fmt: skip
    for name in dict.fromkeys(r["task"] for r in _of(rows, "network")):
        tables[f"{task(name).title}, built"] = _network_table(rows, name)
    tables["Conclusions"] = _claims(rows)
    return Reproduction(
        name="pensia2020",
        title="Networks inside random networks: theorem, law and measurement",
        paper="Pensia et al. (2020), Optimal lottery tickets via subset sum: logarithmic "
        "over-parameterization is sufficient; and Orseau et al. (2020) beside it",
        conditions=[
            "Items are those of random matrices U[−1, 1]; subsets are solved exactly. assigned: "
            "each unit reads the input that suits it; tied: input h mod d. Bound: from the built "
            "weights, for every input of norm 1.",
            "rms: of the outputs' error over their spread, on the test images; feedback passes "
            "each error on to inputs not yet met. Biases and norms are kept; of a convolution the "
            "matrix of its patches is built.",
            "Intervals are Student's at 95 % over draws (of logarithms, where ratios are shown).",
        ],
        rows=[{"part": r["part"], **{k: v for k, v in r.items() if k != "part"}} for r in rows],
        figures={"pensia2020-errors": _figure(rows)},
        tables=tables,
    )


def _of(rows: Sequence[Row], part: str, **wanted: Any) -> list[Row]:
    return [r for r in rows if r["part"] == part and all(r[k] == v for k, v in wanted.items())]


def _mean_log(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(max(v, 1e-300)) for v in values))


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    mean = statistics.fmean(values)
    low, high = t_interval(values) or (-math.inf, math.inf)
    return mean, low, high


def _ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of a ratio with its interval, draw by draw."""
    logs = [math.log(a / b) for a, b in zip(over, under, strict=True)]
    mean, low, high = _interval(logs)
    return math.exp(mean), math.exp(low), math.exp(high)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [r[key] for r in sorted(rows, key=lambda r: r["draw"])]


def _construction_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    lines = []
    for n in sorted({r["n"] for r in _of(rows, "construction")}):
        line = {"items per slot": str(n)}
        for key, says in (("weight", "largest weight error"), ("output", "largest output error")):
            for assigned in (False, True):
                errors = _values(_of(rows, "construction", n=n, assigned=assigned), key)
                line[f"{says}, {'assigned' if assigned else 'tied'}"] = f"{_mean_log(errors):.2g}"
        own = _of(rows, "construction", n=n, assigned=True)
        mean, low, high = _ratio(_values(own, "bound"), _values(own, "output"))
        line["bound / output error, assigned"] = f"{mean:.1f} ({low:.1f} to {high:.1f})"
        lines.append(line)
    return lines


def _network_table(rows: Sequence[Row], name: str) -> list[dict[str, str]]:
    lines = []
    own = _of(rows, "network", task=name)
    for n in sorted({r["n"] for r in own}):
        line = {"items per slot": str(n)}
        for feedback in (False, True):
            said = "feedback" if feedback else "per weight"
            part = _of(own, "network", n=n, feedback=feedback)
            mean, low, high = _interval(_values(part, "error"))
            line[f"rms, {said}"] = f"{_mean_log(_values(part, 'rms')):.3g}"
            line[f"test error (%), {said}"] = f"{mean:.2f} ± {(high - low) / 2:.2f}"
        line["dense (%)"] = f"{own[0]['dense']:.2f}"
        lines.append(line)
    return lines


def _claims(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Each conclusion with our number and whether it holds."""
    found = []

    def say(conclusion: str, measured: str, low: float, high: float, least: float) -> None:
        verdict = "holds" if low >= least else "does not hold" if high < least else "not told apart"
        found.append({"conclusion": conclusion, "measured": measured, "verdict": verdict})

    for r in _of(rows, "law"):
        if r["items"] == "uniform":
            reach = 0.03 + 4 * math.sqrt(r["law"] * (1 - r["law"]) / LAW_DRAWS)
            gap = abs(r["measured"] - r["law"])
            say(f"the law is right within 0.03 and 4 standard errors, n = {r['n']}", f"{gap:.3f}",
                reach - gap, reach - gap, 0.0)  # fmt: skip
    for n in sorted({r["n"] for r in _of(rows, "construction")}):
        if n < 12:
            continue
        sides = [_of(rows, "construction", n=n, assigned=a) for a in (False, True)]
        mean, low, high = _ratio(*(_values(side, "weight") for side in sides))
        say(f"assignment lessens the weight error 15 times or more, n = {n}",
            f"{mean:.0f} times ({low:.2g} to {high:.2g})", low, high, 15.0)  # fmt: skip
    every = _of(rows, "construction")
    held = min(r["bound"] / r["output"] for r in every)
    say("no output error exceeds its bound", f"bound / error ≥ {held:.2g}", held, held, 1.0)
    for r in _of(rows, "samples"):
        say(f"the theorem's samples fail in at most δ of the draws, ε = {r['eps']:g}",
            f"{r['failed']:.3f}", DELTA - r["failed"], DELTA - r["failed"], 0.0)  # fmt: skip
        share = r["largest"] / r["theory"]
        say(f"taking the largest that fits needs at most 0.4 of the theorem's, ε = {r['eps']:g}",
            f"{share:.2f}", 0.4 - share, 0.4 - share, 0.0)  # fmt: skip
    for name in dict.fromkeys(r["task"] for r in _of(rows, "network")):
        own = _of(rows, "network", task=name)
        counts = sorted({r["n"] for r in own})
        for n in counts:
            if n + 2 in counts:
                plain = _values(_of(own, "network", n=n + 2, feedback=False), "rms")
                less = _values(_of(own, "network", n=n, feedback=True), "rms")
                mean, low, high = _ratio(plain, less)
                say(f"feedback with {n} items is as good as {n + 2} without, {name}",
                    f"{mean:.2f} times less ({low:.2f} to {high:.2f})", low, high, 1.0)  # fmt: skip
        if 8 in counts:
            fed = _of(own, "network", n=8, feedback=True)
            mean, low, high = _interval([r["dense"] - r["error"] for r in fed])
            say(f"8 items with feedback reach the dense level (0.5 points), {name}",
                f"{-mean:+.2f} points", low, high, -0.5)  # fmt: skip
    return found


def _figure(rows: Sequence[Row]) -> Any:
    """Errors against items: the theorem's bound, the law of the worst weight, what came out."""
    drawn: list[Row] = []
    series = {
        ("bound", True): ("bound on the output error", "bound"),
        ("law", True): ("weight error by the law", "theory"),
        ("output", True): ("output error, assigned", "measured"),
        ("output", False): ("output error, tied", "measured"),
        ("weight", True): ("weight error, assigned", "measured"),
    }
    for (key, assigned), (name, kind) in series.items():
        for n in sorted({r["n"] for r in _of(rows, "construction")}):
            own = _values(_of(rows, "construction", n=n, assigned=assigned), key)
            point = {"series": name, "kind": kind, "items": n, "error": _mean_log(own)}
            if kind == "measured":
                point |= {"low": min(own), "high": max(own)}
            drawn.append(point)
    chart = figure(
        drawn, x="items", y="error", x_title="items per slot", y_title="largest error, norm 1",
        y_scale="log",
    )  # fmt: skip
    return chart, drawn
