"""Scores: how much a weight matters; larger means keep.

A score is any function `Layer -> Float[out in]`. `Score` lists what it may say of itself beside
that: the `statistics` it reads; for nodes the `side` and the `reduction`, or a method `classes`
that scores whole classes.
"""

from collections.abc import Callable

from prunus.scores.activation import APoZ, MeanActivation
from prunus.scores.blocks import BlockCosine, BlockGap, BlockShapley
from prunus.scores.bn_scale import BNScale
from prunus.scores.classes import REDUCTIONS, class_scores
from prunus.scores.constant import Constant
from prunus.scores.experts import ExpertGap, ExpertLoad, Reap
from prunus.scores.fpgm import FPGM
from prunus.scores.gate import Gate, Taylor, Taylor2017
from prunus.scores.grasp import GraSP, grasp
from prunus.scores.magnitude import Magnitude
from prunus.scores.movement import Movement
from prunus.scores.obd import OBD
from prunus.scores.obs_node import OBSNode
from prunus.scores.obs_price import ObsPrice
from prunus.scores.output_variance import OutputVariance
from prunus.scores.protocol import Score
from prunus.scores.removal_error import RemovalError, removal_error
from prunus.scores.sensitivity import Sensitivity
from prunus.scores.share import Share
from prunus.scores.snip import SNIP, snip, snip_normalised
from prunus.scores.synflow import SynFlow, synflow
from prunus.scores.thinet import ThiNet

__all__ = [
    "FPGM",
    "OBD",
    "REDUCTIONS",
    "SCORES",
    "SNIP",
    "APoZ",
    "BNScale",
    "BlockCosine",
    "BlockGap",
    "BlockShapley",
    "Constant",
    "ExpertGap",
    "ExpertLoad",
    "Gate",
    "GraSP",
    "Magnitude",
    "MeanActivation",
    "Movement",
    "OBSNode",
    "ObsPrice",
    "OutputVariance",
    "Reap",
    "RemovalError",
    "Score",
    "Sensitivity",
    "Share",
    "SynFlow",
    "Taylor",
    "Taylor2017",
    "ThiNet",
    "class_scores",
    "grasp",
    "removal_error",
    "snip",
    "snip_normalised",
    "synflow",
]


SCORES: dict[str, Callable[..., Score]] = {
    "Constant": Constant,
    "Magnitude": Magnitude,
    "RemovalError": RemovalError,
    "SNIP": SNIP,
    "GraSP": GraSP,
    "SynFlow": SynFlow,
    "Sensitivity": Sensitivity,
    "FPGM": FPGM,
    "BNScale": BNScale,
    "BlockCosine": BlockCosine,
    "BlockGap": BlockGap,
    "BlockShapley": BlockShapley,
    "Reap": Reap,
    "ExpertLoad": ExpertLoad,
    "ExpertGap": ExpertGap,
    "APoZ": APoZ,
    "MeanActivation": MeanActivation,
    "ThiNet": ThiNet,
    "OBSNode": OBSNode,
    "OBD": OBD,
    "ObsPrice": ObsPrice,
    "Taylor": Taylor,
    "Taylor2017": Taylor2017,
    "Gate": Gate,
    "OutputVariance": OutputVariance,
    "Movement": Movement,
    "Share": Share,
}
