"""The paper's inequalities between pruning methods, each said to hold or to fail for a student."""

import math
from dataclasses import dataclass
from typing import Any

from prunus.check import whole
from prunus.theory.teacher_student.activation import Activation
from prunus.theory.teacher_student.order import OrderParameters
from prunus.theory.teacher_student.pruned import pruned_error

__all__ = ["CLAIMS", "Claim", "Inequality", "paper_inequalities"]


@dataclass(frozen=True)
class Claim:
    """error of `smaller` ≤ error of `larger`, at equal parameter count.

    Attributes:
        smaller: the method claimed to be better.
        larger: the method whose error is the bound.
        source: "paper" for the seed paper's own claims, "theory" for those found beside them.
        domain: where it holds, in words.
    """

    smaller: str
    larger: str
    source: str
    domain: str


CLAIMS = (
    Claim(
        "dpp-node",
        "random-node",
        "paper",
        "exact in the ideal limit (equality at k = 1 and k = K − 1); for trained students it fails "
        "with strong over-parametrisation and little noise, where dead nodes are the most diverse",
    ),
    Claim(
        "dpp-node",
        "importance-node",
        "paper",
        "not general: |v| is close to the best subset of a trained student and beats DPP nodes "
        "nearly everywhere; undecided in the ideal limit, where importances tie",
    ),
    Claim(
        "random-edge",
        "dpp-node",
        "paper",
        "needs strong over-parametrisation (six or more students per teacher) or few kept nodes; "
        "in the ideal limit for k = 1..k* only",
    ),
    Claim("dpp-edge", "random-edge", "theory", "no exception known"),
    Claim("dpp-edge", "dpp-node", "theory", "no exception known without reweighting"),
    Claim(
        "magnitude-edge",
        "dpp-edge",
        "theory",
        "usual; fails for many copies per teacher at low density, where independent masks of "
        "duplicated nodes average out",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Inequality:
    """One claim at one student and density.

    Attributes:
        claim: what is claimed.
        kept: k, of K nodes; edges have density k/K.
        value: error of the method claimed to be better.
        bound: error of the other method, the claimed upper bound.
        holds: value ≤ bound, up to a relative 1e-9.
    """

    claim: Claim
    kept: int
    value: float
    bound: float
    holds: bool


def paper_inequalities(
    order: OrderParameters,
    kept: int,
    *,
    activation: str | Activation = "erf",
    reweight: str | None = None,
    kernel: Any = "preact",
    score: Any = "readout",
    floor: float | None = None,
    normalise: bool = False,
) -> tuple[Inequality, ...]:
    """Every claim of `CLAIMS` at one student, k nodes against edges of density k/K.

    Args:
        order: the trained student.
        kept: k in 1..K.
        activation, reweight, kernel, score, floor, normalise: as in `pruned_error`.

    References:
        Acharyya et al. (2021) for the first three; the rest from docs/teacher_student.md.
    """
    students = len(order.v)
    count = whole("kept", kept, low=1, high=students)
    errors = {}
    for method in {m for claim in CLAIMS for m in (claim.smaller, claim.larger)}:
        node = method.endswith("-node")
        found = pruned_error(
            order,
            method,
            count if node else count / students,
            activation=activation,
            reweight=reweight if node else None,
            kernel=kernel,
            score=score,
            floor=floor,
            normalise=normalise,
        )
        errors[method] = float(found)
    return tuple(
        Inequality(
            claim=claim,
            kept=count,
            value=errors[claim.smaller],
            bound=errors[claim.larger],
            holds=errors[claim.smaller] <= errors[claim.larger] * (1 + 1e-9)
            or math.isclose(errors[claim.smaller], errors[claim.larger], abs_tol=1e-12),
        )
        for claim in CLAIMS
    )
