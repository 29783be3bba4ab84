"""Teacher and student: the exact generalisation error of learning, pruning and retraining.

A student of K units learns from a teacher of M units by online gradient descent on Gaussian
inputs. For many inputs N, its overlaps with itself and the teacher say all: they follow ordinary
differential equations, and the error before and after pruning is a closed form in them.
All errors are half the mean squared error.
"""

from prunus.theory.teacher_student.activation import ACTIVATIONS, Activation, smooth_activation
from prunus.theory.teacher_student.correlated import (
    correlated_order,
    random_edge_correlated,
    reweight_edges,
    spectral_shift,
)
from prunus.theory.teacher_student.edges import EdgeMoments, edge_moments, moments_of_rule
from prunus.theory.teacher_student.error import generalisation_error
from prunus.theory.teacher_student.ideal import IdealStudent, ideal_error, ideal_order, last_kept
from prunus.theory.teacher_student.inequalities import (
    CLAIMS,
    Claim,
    Inequality,
    paper_inequalities,
)
from prunus.theory.teacher_student.masks import apply_mask, draw_edge_mask
from prunus.theory.teacher_student.order import (
    OrderParameters,
    Weights,
    joint,
    keep_nodes,
    normalised,
    one_seed,
    order_parameters,
    random_weights,
    sample_weights,
)
from prunus.theory.teacher_student.pruned import (
    METHODS,
    PrunedError,
    matched_density,
    prune_edges,
    pruned_error,
)
from prunus.theory.teacher_student.rank import (
    MapCell,
    Ranking,
    RankingRow,
    method_map,
    rank_methods,
    rank_students,
    train_students,
)
from prunus.theory.teacher_student.retrain import (
    Patterns,
    Retraining,
    measured_patterns,
    pattern_total,
    random_patterns,
    refined_patterns,
    retrain,
    sampled_patterns,
)
from prunus.theory.teacher_student.sampled import sample_coordinates
from prunus.theory.teacher_student.simulate import Simulation, simulate, simulated_order
from prunus.theory.teacher_student.solve import Plateau, Trajectory, order_at, plateaus, solve

__all__ = [
    "ACTIVATIONS",
    "CLAIMS",
    "METHODS",
    "Activation",
    "Claim",
    "EdgeMoments",
    "IdealStudent",
    "Inequality",
    "MapCell",
    "OrderParameters",
    "Patterns",
    "Plateau",
    "PrunedError",
    "Ranking",
    "RankingRow",
    "Retraining",
    "Simulation",
    "Trajectory",
    "Weights",
    "apply_mask",
    "correlated_order",
    "draw_edge_mask",
    "edge_moments",
    "generalisation_error",
    "ideal_error",
    "ideal_order",
    "joint",
    "keep_nodes",
    "last_kept",
    "matched_density",
    "measured_patterns",
    "method_map",
    "moments_of_rule",
    "normalised",
    "one_seed",
    "order_at",
    "order_parameters",
    "paper_inequalities",
    "pattern_total",
    "plateaus",
    "prune_edges",
    "pruned_error",
    "random_edge_correlated",
    "random_patterns",
    "random_weights",
    "rank_methods",
    "rank_students",
    "refined_patterns",
    "retrain",
    "reweight_edges",
    "sample_coordinates",
    "sample_weights",
    "sampled_patterns",
    "simulate",
    "simulated_order",
    "smooth_activation",
    "solve",
    "spectral_shift",
    "train_students",
]
