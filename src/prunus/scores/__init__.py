"""Scores: how much a weight matters; larger means keep.

A score is any function `Layer -> Float[out in]`. One that reads statistics names them in an
attribute `statistics`; node pruning reads the attributes `side` ("consumer", "producer" or
"both") and `reduction` ("sum" or "l2").
"""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer
from prunus.scores.constant import Constant
from prunus.scores.grasp import GraSP, grasp
from prunus.scores.magnitude import Magnitude
from prunus.scores.removal_error import RemovalError, removal_error
from prunus.scores.sensitivity import Sensitivity
from prunus.scores.snip import SNIP, snip, snip_normalised
from prunus.scores.synflow import SynFlow, synflow

__all__ = [
    "SCORES",
    "SNIP",
    "Constant",
    "GraSP",
    "Magnitude",
    "RemovalError",
    "Score",
    "Sensitivity",
    "SynFlow",
    "grasp",
    "removal_error",
    "snip",
    "snip_normalised",
    "synflow",
]


class Score(Protocol):
    """The call of every score."""

    def __call__(self, layer: Layer) -> Float[Tensor, "out in"]: ...


SCORES = {
    "Constant": Constant,
    "Magnitude": Magnitude,
    "RemovalError": RemovalError,
    "SNIP": SNIP,
    "GraSP": GraSP,
    "SynFlow": SynFlow,
    "Sensitivity": Sensitivity,
}
