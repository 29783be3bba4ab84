"""The ideal student: each teacher node copied by z students; every error an elementary formula."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from prunus.check import positive, unknown, whole
from prunus.theory.teacher_student.edges import edge_moments
from prunus.theory.teacher_student.order import OrderParameters

__all__ = ["IDEAL_METHODS", "IdealStudent", "ideal_error", "ideal_order", "last_kept"]

NODES = ("random-node", "dpp-node", "balanced-node")
EDGES = {"random-edge": "random", "magnitude-edge": "magnitude", "dpp-edge": "dpp"}
IDEAL_METHODS = (*NODES, *EDGES)


@dataclass(frozen=True)
class IdealStudent:
    """M teacher nodes of unit norm, each copied by z students that share its readout v*.

    Attributes:
        teachers: M.
        copies: z, so that K = zM.
        readout: v* of every teacher node; each student has v*/z.
    """

    teachers: int
    copies: int
    readout: float = 4.0

    def __post_init__(self) -> None:
        whole("teachers", self.teachers, low=1)
        whole("copies", self.copies, low=1)
        positive("readout", abs(self.readout))

    @property
    def students(self) -> int:
        """K = zM."""
        return self.teachers * self.copies


def ideal_order(student: IdealStudent) -> OrderParameters:
    """Its order parameters: T = I, w_i = w*_g(i), v_i = v*/z."""
    group = torch.arange(student.students) // student.copies
    match = (group[:, None] == torch.arange(student.teachers)).double()
    readout = torch.full((student.students,), student.readout / student.copies)
    return OrderParameters(
        match @ match.T,
        match,
        torch.eye(student.teachers, dtype=torch.float64),
        readout.double(),
        torch.full((student.teachers,), student.readout, dtype=torch.float64),
    )


def ideal_error(student: IdealStudent, method: str, kept: int) -> float:
    """ε of the ideal erf student with `kept` of its K nodes, or the density k/K of its edges.

    Nodes: ε = (v*² M/6) [(1 − k/K)² + V/z²], V the variance of the number of kept nodes per group.
    Edges: ε = (M v*²/2) [(2/π)(asin(m/(1+m))/z + (1 − 1/z) asin(h₁/(1+m))) + 1/3
    − (4/π) asin(m/√(2(1+m)))], with h₁ = h(1).

    Args:
        student: the ideal student.
        method: "random-node", "dpp-node" (kernel Q), "balanced-node" (the best choice of nodes),
            "random-edge", "magnitude-edge" or "dpp-edge".
        kept: k in 1..K; k/K is the density for edges.

    References:
        Derived in docs/teacher_student.md.
    """
    k = whole("kept", kept, low=1, high=student.students)
    m_nodes, z, total = student.teachers, student.copies, student.students
    if method in NODES:
        spread = _spread(method, k, m_nodes, z)
        return student.readout**2 * m_nodes / 6 * ((1 - k / total) ** 2 + spread / z**2)
    if method not in EDGES:
        raise unknown("method", method, IDEAL_METHODS)
    moments = edge_moments(EDGES[method], k / total)
    m, h = moments.own, float(moments.across(np.array([1.0]))[0])
    own = math.asin(min(1.0, m / (1 + m))) / z
    across = (1 - 1 / z) * math.asin(min(1.0, h / (1 + m)))
    teacher = 4 / math.pi * math.asin(min(1.0, m / math.sqrt(2 * (1 + m))))
    return student.readout**2 * m_nodes / 2 * (2 / math.pi * (own + across) + 1 / 3 - teacher)


def last_kept(student: IdealStudent) -> int:
    """The largest k* with random edge better than DPP node for every k = 1..k*; 0 for none."""
    found = 0
    for k in range(1, student.students):
        if ideal_error(student, "random-edge", k) >= ideal_error(student, "dpp-node", k):
            break
        found = k
    return found


def _spread(method: str, k: int, groups: int, copies: int) -> float:
    """Variance of the number of kept nodes in one group."""
    total = groups * copies
    if method == "balanced-node":
        fraction = (k % groups) / groups
        return fraction * (1 - fraction)
    if k == total:
        return 0.0
    if method == "random-node":
        return k / groups * (1 - 1 / groups) * (total - k) / (total - 1)
    if k <= groups:
        return k / groups * (1 - k / groups)
    return (k - groups) / groups * (1 - 1 / groups) * (total - k) / (total - groups - 1)
