"""Trained networks on the digits: before the mask is drawn, certificates, and random designs."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from prunus.allocation.least_variance import optimal_densities
from prunus.bench.data.cache import trained
from prunus.bench.data.models import mlp
from prunus.bench.data.sets import Dataset, load_data
from prunus.bench.data.tasks import Task
from prunus.bench.data.train import TRAINER_VERSION, Training, fit
from prunus.counting import count_of
from prunus.files import Row
from prunus.guarantee.extract import extract
from prunus.progress import track
from prunus.rng import generator_for
from prunus.scores.sensitivity import sensitivity_scores
from prunus.theory.gap import LinearPair, VacuousWarning
from prunus.theory.gap.chain import chain_bound
from prunus.theory.gap.concentration import NormBound, matrix_bernstein
from prunus.theory.gap.given_weights import drawn_sup, draws_needed
from prunus.theory.gap.per_sample import first_order_gaps, pairwise_unchanged, sample_bound
from prunus.theory.gap.propagate import Reach, product_bound
from prunus.theory.gap.search import largest_gap
from prunus.theory.gap.sensitivity import sensitivities
from prunus.theory.gap.stages import Stage, run

__all__ = ["DigitsNet", "design_rows", "digits_networks", "magnitude_rows", "rescaled_rows"]

DELTA = 0.05
SIMULATION_DELTA = 1e-3
TRAINING = Training(epochs=30, learning_rate=3e-3, batch=64)
WIDTHS: dict[str, tuple[tuple[int, ...], type[nn.Module]]] = {
    "relu2": ((64, 300, 10), nn.ReLU),
    "relu3": ((64, 256, 128, 10), nn.ReLU),
    "tanh3": ((64, 256, 128, 10), nn.Tanh),
    "relu5": ((64, 200, 200, 200, 200, 10), nn.ReLU),
}
# What an earlier, independent implementation found on its own networks of these widths.
RESCALED: dict[tuple[str, float], tuple[float, ...]] = {
    # largest gap; L2 Bernstein, walk moments, simulation; L3 product, chain
    ("relu2", 0.99): (5.6, 561, 130, 77, 43, 27),
    ("relu2", 0.9): (13.3, 1038, 308, 149, 99, 62),
    ("relu3", 0.9): (28.8, 7218, 1475, 565, 321, 179),
    ("tanh3", 0.9): (17.6, 4005, 1001, 506, 330, 202),
    ("relu5", 0.9): (48, 4.6e4, 6204, 2347, 1102, 543),
}
MAGNITUDE: dict[tuple[str, float], tuple[float | None, ...]] = {
    # largest gap; product, chain; chain around the mean, its largest gap; rms bound, rms
    ("relu2", 0.9): (0.59, 6.2, 3.6, 2.8, 0.51, 1.09, 0.182),
    ("relu3", 0.9): (1.50, 20, 11, 8.8, 1.34, 3.4, 0.425),
    ("relu3", 0.5): (27.8, 191, 121, 98, 25.7, 41, 8.2),
    ("tanh3", 0.9): (1.32, 36, 22, 15, 1.04, 3.8, 0.31),
    ("relu5", 0.9): (4.04, 82, 40, 31, 3.4, 13.4, 0.70),
    ("cnn", 0.9): (1.78, 30, None, None, None, 10.7, 0.43),
}
DESIGNS: dict[str, tuple[float, float, float]] = {
    # rms gap at density 1/2: magnitude; sampling of least variance; |W| √S
    "relu2": (5.04, 2.27, 2.12),
    "relu3": (8.19, 2.67, 2.91),
    "tanh3": (6.76, 1.24, 2.35),
    "relu5": (14.1, 7.5, 1.81),
}


class SmallCNN(nn.Sequential):
    """Two convolutions with average pooling and one linear layer."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class DigitsNet:
    """A trained network with its data.

    Attributes:
        name: relu2, relu3, tanh3, relu5 or cnn.
        stages: of the dense network, in float64.
        fit: inputs for calibration (training data).
        fresh: test inputs.
        rms: root mean square of the output on the test inputs.
        radius: largest ‖x‖ of all inputs.
    """

    name: str
    stages: tuple[Stage, ...]
    fit: Tensor
    fresh: Tensor
    rms: float
    radius: float


def _train(
    model: nn.Module,
    data: Dataset,
    *,
    generator: Generator,
    hold: Callable[[torch.optim.Optimizer], Any] | None = None,
    progress: bool | None = None,
) -> nn.Module:
    return fit(model, data, TRAINING, generator=generator, hold=hold, progress=progress)


def digits_networks(
    names: Sequence[str], *, seed: int, progress: bool | None = None
) -> list[DigitsNet]:
    """The named networks, trained on the digits (or read from the cache of trained networks)."""
    data = load_data("digits")
    nets = []
    for name in names:
        make: Callable[[], nn.Module] = SmallCNN
        if name != "cnn":
            widths, phi = WIDTHS[name]
            make = partial(mlp, widths, phi)
        chosen = Task(
            name=f"gap-{name}",
            title=f"digits, {name}",
            data=lambda *, data_dir: data,
            model=make,
            train=_train,
            retrain=_train,
            definition=f"{TRAINING!r} by trainer {TRAINER_VERSION}",
        )
        model = trained(chosen, data, seed=seed, progress=progress).model.eval()
        x, y = data.x_train.double(), data.x_test.double()
        if name != "cnn":
            x, y = x.flatten(1), y.flatten(1)
        stages = tuple(
            s for s in extract(model, model, data.x_train[:1]).stages if _counts(s, name)
        )
        outputs = run(stages, y)
        nets.append(
            DigitsNet(
                name=name,
                stages=stages,
                fit=x[:512],
                fresh=y,
                rms=float(outputs.square().sum(dim=1).mean().sqrt()),
                radius=float(torch.cat([x, y]).flatten(1).norm(dim=1).max()) * (1 + 1e-9),
            )
        )
    return nets


def _counts(stage: Stage, name: str) -> bool:
    """Not the flattening in front of a network of matrices, whose inputs come flat."""
    return name == "cnn" or getattr(stage, "name", "") != "identity"


def _layers(stages: Sequence[Stage]) -> list[LinearPair]:
    return [s for s in stages if isinstance(s, LinearPair)]


def _with(stages: Sequence[Stage], factors: Mapping[str, Tensor]) -> tuple[Stage, ...]:
    """The network with every weight times its factor as the pruned one."""
    return tuple(
        replace(s, pruned_weight=s.weight * factors[s.name]) if isinstance(s, LinearPair) else s
        for s in stages
    )


def _magnitude(stages: Sequence[Stage], density: float) -> tuple[Stage, ...]:
    masks = {}
    for pair in _layers(stages):
        flat = pair.weight.abs().flatten()
        kept = count_of(density, len(flat))
        mask = torch.zeros_like(flat)
        mask[flat.argsort(descending=True, stable=True)[:kept]] = 1
        masks[pair.name] = mask.reshape(pair.weight.shape)
    return _with(stages, masks)


def _routes(stages: Sequence[Stage], radius: float, centre: Tensor) -> dict[str, float | None]:
    start = Reach(dense=radius, pruned=radius, gap=0.0, centre=centre, pruned_centre=centre)
    return {
        "product": product_bound(stages, start).gap,
        "chain": chain_bound(stages, radius, centre),
    }


def _row(
    part: str, net: DigitsNet, what: str, bound: str, value: float | None, measured: float,
    known: Sequence[float | None] | None, place: int, truth: int,
) -> dict[str, Any] | None:  # fmt: skip
    if value is None:
        return None
    other = None if known is None else known[place]
    base = None if known is None else known[truth]
    return {
        "part": part,
        "setting": f"{net.name}, {what}",
        "bound": bound,
        "value": value,
        "measured": measured,
        "ratio": value / measured if measured else math.inf,
        "prototype": None if other is None or not base else other / base,
        "prototype value": other,
    }


def rescaled_rows(
    nets: Sequence[DigitsNet], *, full: bool, seed: int, progress: bool | None = None
) -> list[Row]:
    """Rescaled random masks: before the mask is drawn (L2), and of one drawn mask (L3)."""
    rows: list[dict[str, Any] | None] = []
    cases = [
        (net, p)
        for net in nets
        for p in ((0.99, 0.9) if net.name == "relu2" else (0.9,))
        if net.name != "cnn"
    ]
    for net, p in track(cases, "rescaled masks", progress=progress):
        generator = generator_for(seed, "gap digits", net.name, str(p))
        pairs = _layers(net.stages)
        densities = {pair.name: p for pair in pairs}
        draws = draws_needed(SIMULATION_DELTA, DELTA / len(pairs)) if full else 60

        def bernstein(pair: LinearPair, share: float, p: float = p) -> NormBound:
            variances = pair.weight.square() * (1 - p) / p
            spread = float(torch.maximum(variances.sum(0).max(), variances.sum(1).max()))
            largest = float(pair.weight.abs().max()) * max(p, 1 - p) / p
            n, m = pair.weight.shape
            value = matrix_bernstein(n, m, spread, largest, share)
            return NormBound(value=value, route="matrix Bernstein", delta=share)

        def simulated(
            pair: LinearPair, share: float, p: float = p, count: int = draws,
            generator: Generator = generator,
        ) -> NormBound:  # fmt: skip
            norms = []
            for _ in range(count):
                mask = torch.rand(pair.weight.shape, dtype=torch.float64, generator=generator) < p
                norms.append(float(torch.linalg.matrix_norm(pair.weight * (1 - mask / p), 2)))
            return NormBound(value=max(norms), route="simulation", delta=share)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VacuousWarning)
            before = {
                name: drawn_sup(
                    net.stages, densities, radius=net.radius, delta=DELTA, layer_bound=rule
                ).value
                for name, rule in (
                    ("L2, matrix Bernstein", bernstein),
                    ("L2, engine", None),
                    (f"L2, largest of {draws} simulated norms", simulated),
                )
            }
        factors = {
            pair.name: (torch.rand(pair.weight.shape, dtype=torch.float64, generator=generator) < p)
            / p
            for pair in pairs
        }
        stages = _with(net.stages, factors)
        centre = torch.zeros_like(net.fresh[:1])
        sup = largest_gap(
            stages, net.radius, centre, steps=200, starts=12, generator=generator, samples=net.fresh
        )
        after = _routes(stages, net.radius, centre)
        values = [*before.items(), ("L3, product", after["product"]), ("L3, chain", after["chain"])]
        known = RESCALED.get((net.name, p))
        what = f"random_rescaled, density {p:g}"
        rows += [
            _row("digits, rescaled masks", net, what, name, value, sup, known, i + 1, 0)
            for i, (name, value) in enumerate(values)
        ]
    return [row for row in rows if row is not None]


def magnitude_rows(
    nets: Sequence[DigitsNet], *, seed: int, progress: bool | None = None
) -> list[Row]:
    """Magnitude masks: certificates around 0 and the mean, bounds of the rms, predictions."""
    rows: list[dict[str, Any] | None] = []
    cases = [(net, p) for net in nets for p in (0.9, 0.5) if (net.name, p) in MAGNITUDE]
    for net, p in track(cases, "magnitude masks", progress=progress):
        generator = generator_for(seed, "gap digits magnitude", net.name, str(p))
        stages, known = _magnitude(net.stages, p), MAGNITUDE[net.name, p]
        what = f"magnitude, density {p:g}"
        origin = torch.zeros_like(net.fresh[:1])
        mean = net.fit.mean(dim=0, keepdim=True)
        every = torch.cat([net.fit, net.fresh])
        near = float((every - mean).flatten(1).norm(dim=1).max()) * (1 + 1e-9)
        sups = [
            largest_gap(stages, r, c, steps=200, starts=12, generator=generator, samples=net.fresh)
            for r, c in ((net.radius, origin), (near, mean))
        ]
        around, beside = _routes(stages, net.radius, origin), _routes(stages, near, mean)
        outputs, changed = run(stages, net.fresh), run(stages, net.fresh, pruned=True)
        rms = float((outputs - changed).square().sum(dim=1).mean().sqrt())
        first = float(first_order_gaps(stages, net.fresh).square().mean().sqrt())
        part = "digits, magnitude masks"
        found = (
            ("L3, product", around["product"], sups[0], 1, 0),
            ("L3, chain", around["chain"], sups[0], 2, 0),
            ("L3, chain, ball around the mean", beside["chain"], sups[1], 3, 4),
            ("rms bound", sample_bound(stages, net.fresh)[0], rms, 5, 6),
            ("rms, first order (prediction)", first, rms, 6, 6),
        )
        rows += [
            _row(part, net, what, name, value, measured, known, place, truth)
            for name, value, measured, place, truth in found
        ]
        if rows[-1] is not None:
            rows[-1] |= {"prototype": None, "prototype value": None}
        agree = float((outputs.argmax(1) == changed.argmax(1)).double().mean())
        safe = float(pairwise_unchanged(stages, net.fresh).double().mean())
        for name, value in (("same predictions", agree), ("certified unchanged, f not run", safe)):
            rows.append(
                {"part": part, "setting": f"{net.name}, {what}", "bound": name, "value": value}
            )
    return [row for row in rows if row is not None]


def design_rows(
    nets: Sequence[DigitsNet], *, full: bool, seed: int, progress: bool | None = None
) -> list[Row]:
    """The rms gap at density 1/2: magnitude, |W| √S, sampling of least variance, uniform."""
    rows = []
    for net in track([n for n in nets if n.name in DESIGNS], "designs", progress=progress):
        pairs = _layers(net.stages)
        weights = {pair.name: pair.weight for pair in pairs}
        reaction = sensitivities(net.stages, net.fit)
        magnitude = _rms(_magnitude(net.stages, 0.5), net.fresh)
        scores = {name: sensitivity_scores(w, reaction[name]) for name, w in weights.items()}
        cut = torch.cat([s.flatten() for s in scores.values()]).quantile(0.5)
        ranked = _rms(
            _with(net.stages, {k: (s > cut).double() for k, s in scores.items()}), net.fresh
        )
        best = optimal_densities(weights, reaction, 0.5)
        half = {name: torch.full_like(w, 0.5) for name, w in weights.items()}
        sampled = [
            _sampled(net, densities, 40 if full else 8, generator_for(seed, "design", net.name, i))
            for i, densities in enumerate((best, half))
        ]
        known = DESIGNS[net.name]
        for name, value, place in (
            ("magnitude, per layer", magnitude, 0),
            ("sampled, least variance", sampled[0], 1),
            ("top half by |W|√S", ranked, 2),
            ("sampled, uniform", sampled[1], None),
        ):
            rows.append(
                {
                    "part": "digits, designs at density 0.5",
                    "setting": net.name,
                    "bound": name,
                    "value": value / net.rms,
                    "measured": value,
                    "ratio": value / magnitude,
                    "prototype": None if place is None else known[place] / known[0],
                    "prototype value": None if place is None else known[place],
                }
            )
    return rows


def _rms(stages: Sequence[Stage], x: Tensor) -> float:
    gap = run(stages, x) - run(stages, x, pruned=True)
    return float(gap.square().sum(dim=1).mean().sqrt())


def _sampled(
    net: DigitsNet, densities: Mapping[str, Tensor], draws: int, generator: Generator
) -> float:
    squares = []
    for _ in range(draws):
        factors = {
            name: (torch.rand(p.shape, dtype=torch.float64, generator=generator) < p) / p
            for name, p in densities.items()
        }
        squares.append(_rms(_with(net.stages, factors), net.fresh) ** 2)
    return float(np.sqrt(np.mean(squares)))
