"""Which regime a density lies in, and the map of density against one other parameter."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunus.check import fraction, unknown
from prunus.progress import progress_bar
from prunus.theory.at_init.data import Setting, as_densities, check_density
from prunus.theory.at_init.growth import initialisation_regime
from prunus.theory.at_init.predict import TRAIN_LOSS, predict
from prunus.theory.at_init.simulate import simulate
from prunus.theory.at_init.thresholds import (
    SignalLoss,
    p_keep,
    p_mild,
    p_over,
    signal_loss_probability,
)

__all__ = ["AXES", "PhaseDiagram", "Regime", "classify_regime", "phase_diagram"]

AXES = ("noise", "signal", "neurons", "classes", "samples", "init_scale")
ENGINES = ("closed", "dual", "primal", "reduced")


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Where a density lies, with the numbers that decided it.

    Attributes:
        name: "over_pruned" (p ≤ p_over), "signal_loss" (a class loses its signal with probability
            ≥ 1/2), "transitional" (P(all kept) < 1 − δ) or "mild".
        density: p.
        loss: probabilities of losing signals [PROVED].
        p_over: see `p_over` [PROVED].
        p_keep: see `p_keep` [PROVED].
        p_mild: see `p_mild`; order of magnitude only.
        initialisation: "small", "intermediate" or "lazy" [HEURISTIC].
        accuracy: predicted test accuracy [HEURISTIC]; None for a support above 1.
        dense_accuracy: the same for the dense network.
        beneficial: accuracy > dense_accuracy; None for a support above 1.
        valid: whether the prediction may be relied on.
    """

    name: Literal["over_pruned", "signal_loss", "transitional", "mild"]
    density: float
    loss: SignalLoss
    p_over: float
    p_keep: float
    p_mild: float
    initialisation: str
    accuracy: float | None
    dense_accuracy: float | None
    beneficial: bool | None
    valid: bool


def classify_regime(
    setting: Setting, density: float, *, delta: float = 0.01, train_loss: float = TRAIN_LOSS
) -> Regime:
    """The regime of a density, with the probabilities used.

    Args:
        setting: sizes and strengths.
        density: p.
        delta: δ of `p_keep`.
        train_loss: ε of `predict`.

    Warns:
        RuntimeWarning: log d ≤ K, where the probability statement about p_over says nothing.
    """
    p = check_density("density", density)
    k, m, d, s = setting.classes, setting.neurons, setting.dimension, setting.support
    fraction("delta", delta)
    if math.log(d) <= k:
        warnings.warn(
            f"log dimension = {math.log(d):.3g} <= classes = {k}: that a network at p_over is a "
            f"random guesser is certain with probability >= 1 - K/log d only, which says nothing.",
            RuntimeWarning,
            stacklevel=2,
        )
    loss = signal_loss_probability(p, m, k, s)
    over = p_over(k, m, d)
    name: Literal["over_pruned", "signal_loss", "transitional", "mild"]
    if p <= over:
        name = "over_pruned"
    elif loss.per_class >= 0.5:
        name = "signal_loss"
    elif loss.all_kept < 1 - delta:
        name = "transitional"
    else:
        name = "mild"
    here = predict(setting, p, train_loss=train_loss) if s == 1 else None
    dense = predict(setting, 1.0, train_loss=train_loss) if s == 1 else None
    return Regime(
        name=name,
        density=p,
        loss=loss,
        p_over=over,
        p_keep=p_keep(m, k, delta, s),
        p_mild=p_mild(m, d),
        initialisation=initialisation_regime(setting, p, train_loss=train_loss),
        accuracy=here.accuracy if here else None,
        dense_accuracy=dense.accuracy if dense else None,
        beneficial=here.accuracy > dense.accuracy if here and dense else None,
        valid=here.valid if here else False,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class PhaseDiagram:
    """Test accuracy over density and one other parameter, with the theory's curves.

    Attributes:
        setting: the values of all other parameters.
        axis: name of the other parameter, a field of `Setting`.
        values: its values, one per row.
        densities: one per column.
        engine: "closed" (predicted [HEURISTIC]) or an engine of `simulate` (measured).
        accuracy: test accuracy, from chance 1/K to 1.
        valid: False where a prediction is not to be relied on.
        p_over: per row; below it no neuron sees any class with probability ≥ 1 − K/log d, and the
            network guesses [PROVED].
        p_keep: per row; above it every class keeps its signal with probability ≥ 1 − δ [PROVED].
        p_mild: per row; order of magnitude only.
        best: density of the highest accuracy in the row, the largest of equals.
        unit_snr: noise level at which ρ_0 = 1, for the noise axis; else None.
    """

    setting: Setting
    axis: str
    values: list[float]
    densities: list[float]
    engine: str
    accuracy: Float[Tensor, "values densities"]
    valid: Bool[Tensor, "values densities"]
    p_over: Float[Tensor, " values"]
    p_keep: Float[Tensor, " values"]
    p_mild: Float[Tensor, " values"]
    best: Float[Tensor, " values"]
    unit_snr: float | None


def phase_diagram(
    setting: Setting,
    axis: str,
    values: Sequence[float],
    densities: Any,
    *,
    engine: Literal["closed", "dual", "primal", "reduced"] = "closed",
    seeds: int | Sequence[int] = 6,
    delta: float = 0.01,
    train_loss: float = TRAIN_LOSS,
    dtype: torch.dtype = torch.float32,
    progress: bool | None = None,
) -> PhaseDiagram:
    """Map of density against one parameter, predicted or measured.

    Args:
        setting: values of the other parameters.
        axis: "noise", "signal", "neurons", "classes", "samples" or "init_scale".
        values: its values.
        densities: in (0, 1].
        engine: "closed" takes 5 ms a cell; the others train `seeds` networks a cell.
        seeds: for the engines that train; the accuracy is their mean.
        delta: δ of `p_keep`.
        train_loss: ε of `predict`.
        dtype: of the training.
        progress: see `prunus.progress.progress_bar`.

    Raises:
        ValueError: an unknown axis or engine, no values, a bad value for the parameter.
    """
    if axis not in AXES:
        raise unknown("axis", axis, AXES)
    if engine not in ENGINES:
        raise unknown("engine", str(engine), ENGINES)
    fraction("delta", delta)
    columns = as_densities(densities)
    if not len(values):
        raise ValueError("`values` must hold at least one value, got none.")
    changes: list[dict[str, Any]] = [{axis: value} for value in values]
    rows = [dataclasses.replace(setting, **change) for change in changes]
    accuracy = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    valid = torch.ones(len(rows), len(columns), dtype=torch.bool)
    with progress_bar("Mapping phases", len(rows), progress=progress) as advance:
        for i, row in enumerate(rows):
            if engine == "closed":
                cells = [predict(row, p, train_loss=train_loss) for p in columns]
                accuracy[i] = torch.tensor([c.accuracy for c in cells], dtype=torch.float64)
                valid[i] = torch.tensor([c.valid for c in cells])
            else:
                run = simulate(
                    row,
                    columns,
                    seeds=seeds,
                    engine=engine,
                    checkpoints=0,
                    dtype=dtype,
                    progress=False,
                )
                accuracy[i] = run.test_accuracy.mean(1)
            advance(1)

    def curve(value: list[float]) -> Float[Tensor, " values"]:
        return torch.tensor(value, dtype=torch.float64)

    template = math.sqrt(setting.signal_to_noise) * setting.noise  # ρ_0 ∝ 1/σ_n²
    return PhaseDiagram(
        setting=setting,
        axis=axis,
        values=[float(value) for value in values],
        densities=columns,
        engine=engine,
        accuracy=accuracy,
        valid=valid,
        p_over=curve([p_over(r.classes, r.neurons, r.dimension) for r in rows]),
        p_keep=curve([p_keep(r.neurons, r.classes, delta, r.support) for r in rows]),
        p_mild=curve([p_mild(r.neurons, r.dimension) for r in rows]),
        best=curve([max(zip(row, columns, strict=True))[1] for row in accuracy.tolist()]),
        unit_snr=template if axis == "noise" else None,
    )
