"""Pruning at initialisation: when it helps generalisation, and when it destroys it.

A model of sparse signals in noise, trained after random pruning (`simulate`), the thresholds
between its regimes (`p_keep`, `p_over`), a closed-form prediction (`predict`), a map of the whole
(`phase_diagram`), and an estimate of how far a real network may be pruned (`safe_density`).
Docstrings say what is PROVED, what is HEURISTIC and what was MEASURED.
"""

from prunus.theory.at_init.data import Problem, Setting, draw_problem
from prunus.theory.at_init.evaluate import PreactivationLaw, certificate, preactivation_law
from prunus.theory.at_init.growth import (
    OneStepGrowth,
    critical_init_scale,
    initialisation_regime,
    one_step_growth,
    template_snr,
)
from prunus.theory.at_init.phase import PhaseDiagram, Regime, classify_regime, phase_diagram
from prunus.theory.at_init.predict import Prediction, best_density, generalisation_bound, predict
from prunus.theory.at_init.safe import (
    SafeDensity,
    coverage_limit,
    effective_support,
    hard_limit,
    safe_density,
)
from prunus.theory.at_init.simulate import Simulation, simulate
from prunus.theory.at_init.summary import DensitySummary, MaskPredictions, predict_masks, summarise
from prunus.theory.at_init.thresholds import (
    InformationBounds,
    SignalLoss,
    information_bounds,
    mean_accuracy_bound,
    over_pruned_probability,
    p_keep,
    p_mild,
    p_over,
    path_loss_probability,
    retention,
    signal_loss_probability,
    visible_classes,
)

__all__ = [
    "DensitySummary",
    "InformationBounds",
    "MaskPredictions",
    "OneStepGrowth",
    "PhaseDiagram",
    "PreactivationLaw",
    "Prediction",
    "Problem",
    "Regime",
    "SafeDensity",
    "Setting",
    "SignalLoss",
    "Simulation",
    "best_density",
    "certificate",
    "classify_regime",
    "coverage_limit",
    "critical_init_scale",
    "draw_problem",
    "effective_support",
    "generalisation_bound",
    "hard_limit",
    "information_bounds",
    "initialisation_regime",
    "mean_accuracy_bound",
    "one_step_growth",
    "over_pruned_probability",
    "p_keep",
    "p_mild",
    "p_over",
    "path_loss_probability",
    "phase_diagram",
    "preactivation_law",
    "predict",
    "predict_masks",
    "retention",
    "safe_density",
    "signal_loss_probability",
    "simulate",
    "summarise",
    "template_snr",
    "visible_classes",
]
