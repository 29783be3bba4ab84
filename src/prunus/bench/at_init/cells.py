"""Cells of the sweep at initialisation: means, paired gains, and which gains are real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.bench.statistics.intervals import holm, paired
from prunus.surgery.connected import Connection
from prunus.theory.at_init.summary import MINIMUM_SEEDS, spread

__all__ = ["CONTROL", "DENSE", "Cell", "Outcome", "cells_of"]

LEVEL = 0.05  # of the tests that a gain is one
CONTROL = "dense, first weights × √density"
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method at one density, over seeds.

    Attributes:
        method: a recipe at initialisation, `DENSE`, or `CONTROL`.
        density: kept / total of the pruned layers' weights.
        accuracy: mean test accuracy.
        accuracy_error: its standard error.
        accuracy_interval: half its 95 % Student interval; None below 5 seeds.
        gain: mean difference to the dense network of the same seed.
        gain_error: standard error of the paired differences.
        gain_interval: half their 95 % interval; None below 5 seeds.
        boost: True where the gain is positive with a paired test that survives Holm's correction
            over the method's densities at level 0.05.
        control_gain: mean difference to the control of the same seed and density.
        control_gain_error: its standard error.
        train_loss: mean, nats.
        dead_units: mean share of hidden units without a kept weight in, or without one out.
        disconnected: share of seeds in which some output has no path from the input.
        collapsed: share of seeds in which no output has one.
        alignment: mean over live first-layer units of the largest |cosine| with a centred class
            mean, after training; None where the first layer does not see the inputs themselves.
        alignment_start: the same before training.
    """

    method: str
    density: float
    accuracy: float
    accuracy_error: float | None
    accuracy_interval: float | None
    gain: float
    gain_error: float | None
    gain_interval: float | None
    boost: bool
    control_gain: float | None
    control_gain_error: float | None
    train_loss: float
    dead_units: float
    disconnected: float
    collapsed: float
    alignment: float | None
    alignment_interval: float | None
    alignment_start: float | None


@dataclass(frozen=True)
class Outcome:
    """One network of one seed, trained and tested."""

    accuracy: float
    train_loss: float
    dead_units: float
    link: Connection
    alignment: float | None
    alignment_start: float | None


def cells_of(
    table: Mapping[tuple[str, float], Sequence[Outcome]], densities: Sequence[float]
) -> list[Cell]:
    """One cell per method and density, with Holm's correction over each method's densities."""

    def accuracies(key: tuple[str, float]) -> Float[Tensor, " seeds"]:
        return torch.tensor([o.accuracy for o in table[key]], dtype=torch.float64)

    dense = accuracies((DENSE, 1.0))
    boosts: dict[tuple[str, float], bool] = {}
    for method in dict.fromkeys(method for method, _ in table):
        keys = [key for key in table if key[0] == method]
        gains = [paired(_by_seed(accuracies(key)), _by_seed(dense)) for key in keys]
        enough = len(dense) >= MINIMUM_SEEDS
        adjusted = holm([gain["p"] if enough else 1.0 for gain in gains])
        for key, gain, p in zip(keys, gains, adjusted, strict=True):
            boosts[key] = p <= LEVEL and gain["mean"] > 0
    cells = []
    for key, outcomes in table.items():
        method, density = key
        values = accuracies(key)
        error, interval = spread(values)
        gain_error, gain_interval = spread(values - dense)
        against = None
        if method not in (DENSE, CONTROL):
            against = values - accuracies((CONTROL, density))
        cells.append(
            Cell(
                method=method,
                density=density,
                accuracy=float(values.mean()),
                accuracy_error=error,
                accuracy_interval=interval,
                gain=float((values - dense).mean()),
                gain_error=gain_error,
                gain_interval=gain_interval,
                boost=boosts[key],
                control_gain=None if against is None else float(against.mean()),
                control_gain_error=None if against is None else spread(against)[0],
                train_loss=_mean([o.train_loss for o in outcomes]),
                dead_units=_mean([o.dead_units for o in outcomes]),
                disconnected=_mean([float(bool(o.link.dead_outputs)) for o in outcomes]),
                collapsed=_mean([float(o.link.collapsed) for o in outcomes]),
                alignment=_mean_or_none([o.alignment for o in outcomes]),
                alignment_interval=_interval_or_none([o.alignment for o in outcomes]),
                alignment_start=_mean_or_none([o.alignment_start for o in outcomes]),
            )
        )
    return cells


def _by_seed(values: Float[Tensor, " seeds"]) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _interval_or_none(values: Sequence[float | None]) -> float | None:
    known = torch.tensor([v for v in values if v is not None], dtype=torch.float64)
    return spread(known)[1]
