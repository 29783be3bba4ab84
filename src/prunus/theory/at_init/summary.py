"""Means over seeds with intervals, paired gains over the dense network, and the theory beside."""

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.theory.at_init.predict import generalisation_bound, predict
from prunus.theory.at_init.simulate import Simulation
from prunus.theory.at_init.thresholds import mean_accuracy_bound

__all__ = [
    "MINIMUM_SEEDS",
    "DensitySummary",
    "MaskPredictions",
    "predict_masks",
    "spread",
    "summarise",
]

MINIMUM_SEEDS = 5  # below this no interval is shown


@dataclass(frozen=True, kw_only=True)
class DensitySummary:
    """One density of a simulation, over seeds.

    Attributes:
        density: p.
        accuracy: mean test accuracy.
        accuracy_error: its standard error over seeds; None for one seed.
        accuracy_interval: half the width of its 95 % Student interval; None below 5 seeds.
        gain: mean difference to the dense run of the same seed; None without density 1.
        gain_error: standard error of the paired differences.
        gain_interval: half the width of their 95 % interval; None below 5 seeds.
        test_loss: mean, nats.
        train_loss: mean, nats; goes to 0 in every regime.
        train_accuracy: lowest over seeds.
        certificate: mean proved upper bound on the test error.
        accuracy_bound: proved upper bound on the mean accuracy over masks.
        predicted: closed form averaged over masks [HEURISTIC]; None for a support above 1.
        predicted_error: a-priori error curve B(p) [HEURISTIC]; None for a support above 1.
        valid: whether the closed form may be relied on.
    """

    density: float
    accuracy: float
    accuracy_error: float | None
    accuracy_interval: float | None
    gain: float | None
    gain_error: float | None
    gain_interval: float | None
    test_loss: float
    train_loss: float
    train_accuracy: float
    certificate: float
    accuracy_bound: float
    predicted: float | None
    predicted_error: float | None
    valid: bool


def spread(values: Float[Tensor, " seeds"]) -> tuple[float | None, float | None]:
    """Standard error and half the 95 % Student interval of the mean, None for too few seeds."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return None, None
    error = float(values.std()) / math.sqrt(count)
    return error, error * float(t.ppf(0.975, count - 1)) if count >= MINIMUM_SEEDS else None


def summarise(simulation: Simulation) -> list[DensitySummary]:
    """One summary per density, in the simulation's order.

    Accuracies at different densities share their draws, so a gain is judged by `gain` and its
    error, never by the errors of the two accuracies.

    Warns:
        RuntimeWarning: fewer than 5 seeds, so that no interval is given.
    """
    if len(simulation.seeds) < MINIMUM_SEEDS:
        warnings.warn(
            f"{len(simulation.seeds)} seeds are fewer than {MINIMUM_SEEDS}: no interval is given.",
            RuntimeWarning,
            stacklevel=2,
        )
    setting = simulation.setting
    dense = (
        simulation.test_accuracy[simulation.densities.index(1.0)]
        if 1.0 in simulation.densities
        else None
    )
    rows = []
    for i, density in enumerate(simulation.densities):
        accuracy = simulation.test_accuracy[i]
        error, interval = spread(accuracy)
        difference = None if dense is None else accuracy - dense
        gain_error, gain_interval = (None, None) if difference is None else spread(difference)
        # the closed form describes training to the loss that was reached
        reached = float(simulation.train_loss[i].mean())
        closed = setting.support == 1 and 0 < reached < math.log(setting.classes)
        theory = predict(setting, density, train_loss=reached) if closed else None
        rows.append(
            DensitySummary(
                density=density,
                accuracy=float(accuracy.mean()),
                accuracy_error=error,
                accuracy_interval=interval,
                gain=None if difference is None else float(difference.mean()),
                gain_error=gain_error,
                gain_interval=gain_interval,
                test_loss=float(simulation.test_loss[i].mean()),
                train_loss=reached,
                train_accuracy=float(simulation.train_accuracy[i].min()),
                certificate=float(simulation.certificate[i].mean()),
                accuracy_bound=mean_accuracy_bound(
                    density, setting.classes, setting.neurons, setting.support
                ),
                predicted=theory.accuracy if theory else None,
                predicted_error=(
                    generalisation_bound(setting, density, train_loss=reached) if closed else None
                ),
                valid=theory.valid if theory else False,
            )
        )
    return rows


@dataclass(frozen=True, eq=False)
class MaskPredictions:
    """The closed form for each mask that was drawn, from its numbers of signal neurons [HEURISTIC].

    Attributes:
        accuracy: predicted test accuracy; NaN where training did not get below chance loss.
        error: predicted minus measured.
    """

    accuracy: Float[Tensor, "densities seeds"]
    error: Float[Tensor, "densities seeds"]


def predict_masks(simulation: Simulation) -> MaskPredictions:
    """Predict every run of a simulation from its own mask's counts; the support must be 1."""
    setting = simulation.setting
    accuracy = torch.full_like(simulation.test_accuracy, math.nan)
    for i, density in enumerate(simulation.densities):
        for j in range(len(simulation.seeds)):
            reached = float(simulation.train_loss[i, j])
            if 0 < reached < math.log(setting.classes):
                accuracy[i, j] = predict(
                    setting,
                    density,
                    train_loss=reached,
                    counts=simulation.signal_neurons[i, j].tolist(),
                ).accuracy
    return MaskPredictions(accuracy, accuracy - simulation.test_accuracy)
