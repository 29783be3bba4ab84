"""Real masks on real weights: what the closed forms average over."""

import torch
from jaxtyping import Bool
from torch import Generator, Tensor

from prunus.check import fraction, unknown
from prunus.counting import count_of
from prunus.dpp import poisson_sample
from prunus.theory.teacher_student.edges import EDGE_RULES, keep_probabilities
from prunus.theory.teacher_student.order import Weights

__all__ = ["apply_mask", "draw_edge_mask"]


def draw_edge_mask(
    weights: Weights, rule: str, density: float, *, generator: Generator
) -> Bool[Tensor, "K N"]:
    """One mask with exactly floor(pN + 1/2) kept weights in every node, nodes independent.

    random: uniform sets. magnitude: the largest |w|. dpp: sets with probability ∝ Π w², the k-DPP
    of the kernel diag(w) diag(w) (conditional Poisson sampling, exact).
    """
    if rule not in EDGE_RULES:
        raise unknown("edge rule", rule, EDGE_RULES)
    p = fraction("density", density, one=True)
    student = weights.student
    students, inputs = student.shape
    count = count_of(p, inputs)
    if rule == "magnitude":
        return keep_probabilities(student, rule, count / inputs) > 0
    mask = torch.zeros(students, inputs, dtype=torch.bool)
    for node in range(students):
        if rule == "random":
            chosen = torch.randperm(inputs, generator=generator)[:count]
        else:
            chosen = poisson_sample(student[node].square(), count, generator=generator)
        mask[node, chosen] = True
    return mask


def apply_mask(weights: Weights, mask: Bool[Tensor, "K N"]) -> Weights:
    """The weights with the masked ones zero."""
    return Weights(weights.student * mask, weights.teacher, weights.v, weights.v_star)
