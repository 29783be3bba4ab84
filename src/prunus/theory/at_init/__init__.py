"""Pruning at initialisation: when it helps generalisation, and when it destroys it.

A model of sparse signals in noise, trained after random pruning (`simulate`), the thresholds
between its regimes (`p_keep`, `p_over`), a closed-form prediction (`predict`), a map of the whole
(`phase_diagram`), and an estimate of how far a real network may be pruned (`safe_density`).
Docstrings say what is PROVED, what is HEURISTIC and what was MEASURED.
"""

from prunus.theory.at_init.data import Problem, Setting, draw_problem
from prunus.theory.at_init.evaluate import TestLaw, certificate, test_law
from prunus.theory.at_init.simulate import Simulation, simulate
from prunus.theory.at_init.thresholds import (
    InformationBounds,
    SignalLoss,
    information_bounds,
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
    "InformationBounds",
    "Problem",
    "Setting",
    "SignalLoss",
    "Simulation",
    "TestLaw",
    "certificate",
    "draw_problem",
    "information_bounds",
    "over_pruned_probability",
    "p_keep",
    "p_mild",
    "p_over",
    "path_loss_probability",
    "retention",
    "signal_loss_probability",
    "simulate",
    "test_law",
    "visible_classes",
]
