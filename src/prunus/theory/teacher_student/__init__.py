"""Teacher and student: the exact generalisation error of learning, pruning and retraining.

A student of K units learns from a teacher of M units by online gradient descent on Gaussian
inputs. For many inputs N, its overlaps with itself and the teacher say all: they follow ordinary
differential equations, and the error before and after pruning is a closed form in them.
All errors are half the mean squared error.
"""

from prunus.theory.teacher_student.activation import (
    ACTIVATIONS,
    Activation,
    smooth_activation,
)
from prunus.theory.teacher_student.edges import EdgeMoments, edge_moments, moments_of_rule
from prunus.theory.teacher_student.error import generalisation_error
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
from prunus.theory.teacher_student.solve import Plateau, Trajectory, order_at, plateaus, solve

__all__ = [
    "ACTIVATIONS",
    "METHODS",
    "Activation",
    "EdgeMoments",
    "OrderParameters",
    "Plateau",
    "PrunedError",
    "Trajectory",
    "Weights",
    "apply_mask",
    "draw_edge_mask",
    "edge_moments",
    "generalisation_error",
    "joint",
    "keep_nodes",
    "matched_density",
    "moments_of_rule",
    "normalised",
    "one_seed",
    "order_at",
    "order_parameters",
    "plateaus",
    "prune_edges",
    "pruned_error",
    "random_weights",
    "sample_weights",
    "smooth_activation",
    "solve",
]
