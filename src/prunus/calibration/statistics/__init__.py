"""What can be collected of a layer, one file each; a table that calibration loops over.

`calibrate` takes names of the table and instances, a user's own too; see `Statistic`. Adding one
here is a file and a row: store, merge, save, sequential calibration and the memory limit follow.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields

from prunus.calibration.statistics.absolute import Absolute
from prunus.calibration.statistics.cross import Cross
from prunus.calibration.statistics.curvature import Curvature
from prunus.calibration.statistics.dense_gram import DenseGram
from prunus.calibration.statistics.dense_mean import DenseMean
from prunus.calibration.statistics.diag import Diag
from prunus.calibration.statistics.fisher import Fisher
from prunus.calibration.statistics.flow import Flow
from prunus.calibration.statistics.gate import Gate
from prunus.calibration.statistics.gate_curvature import GateCurvature
from prunus.calibration.statistics.gate_output import GateOutput
from prunus.calibration.statistics.grad import Grad
from prunus.calibration.statistics.gram import Gram
from prunus.calibration.statistics.hessian_grad import HessianGrad
from prunus.calibration.statistics.max import Max
from prunus.calibration.statistics.mean import Mean
from prunus.calibration.statistics.output_variance import OutputVariance
from prunus.calibration.statistics.output_zeros import OutputZeros
from prunus.calibration.statistics.protocol import (
    ClassSlopes,
    Matrix,
    Pair,
    Reads,
    SampleSlopes,
    Signal,
    Source,
    Statistic,
    Vectors,
)
from prunus.calibration.statistics.sensitivity import Sensitivity
from prunus.calibration.statistics.share import Share
from prunus.calibration.statistics.slope import Slope
from prunus.calibration.statistics.taylor_gram import TaylorGram
from prunus.calibration.statistics.zeros import Zeros
from prunus.check import unknown
from prunus.layer import Layer

__all__ = [
    "STATISTICS",
    "Absolute",
    "ClassSlopes",
    "Cross",
    "Curvature",
    "DenseGram",
    "DenseMean",
    "Diag",
    "Fisher",
    "Flow",
    "Gate",
    "GateCurvature",
    "GateOutput",
    "Grad",
    "Gram",
    "HessianGrad",
    "Matrix",
    "Max",
    "Mean",
    "OutputVariance",
    "OutputZeros",
    "Pair",
    "Reads",
    "SampleSlopes",
    "Sensitivity",
    "Share",
    "Signal",
    "Slope",
    "Source",
    "Statistic",
    "TaylorGram",
    "Vectors",
    "Zeros",
    "combined",
    "names_of",
    "resolved",
]

STATISTICS: dict[str, Callable[[], Statistic]] = {
    "diag": Diag,
    "gram": Gram,
    "cross": Cross,
    "dense_gram": DenseGram,
    "dense_mean": DenseMean,
    "mean": Mean,
    "max": Max,
    "zeros": Zeros,
    "absolute": Absolute,
    "grad": Grad,
    "sensitivity": Sensitivity,
    "hessian_grad": HessianGrad,
    "flow": Flow,
    "slope": Slope,
    "fisher": Fisher,
    "curvature": Curvature,
    "gate": Gate,
    "gate_output": GateOutput,
    "gate_curvature": GateCurvature,
    "taylor_gram": TaylorGram,
    "output_variance": OutputVariance,
    "output_zeros": OutputZeros,
    "share": Share,
}
RESERVED = {field.name for field in fields(Layer)} | {
    name for name in dir(Layer) if callable(getattr(Layer, name))
}


def combined(wanted: Iterable[str | Statistic]) -> tuple[str | Statistic, ...]:
    """What several parts ask for, once each and in order of names, without what is covered.

    Names of the table stay names; instances stay instances.
    """
    asked = list(wanted)
    named = {given for given in asked if isinstance(given, str)}
    found = sorted(resolved(asked).items())
    return tuple(name if name in named else statistic for name, statistic in found)


def names_of(wanted: Iterable[str | Statistic]) -> tuple[str, ...]:
    """The names of names and instances."""
    return tuple(given if isinstance(given, str) else given.name for given in wanted)


def resolved(wanted: Iterable[str | Statistic]) -> dict[str, Statistic]:
    """{name: statistic} of names and instances, without what another one covers.

    Raises:
        ValueError: a name is unknown, or two different statistics have one name.
        TypeError: something is neither a name nor a statistic.
    """
    found: dict[str, Statistic] = {}
    for given in wanted:
        if isinstance(given, str):
            if given not in STATISTICS:
                raise unknown("statistic", given, STATISTICS)
            given = found.get(given) or STATISTICS[given]()
        elif isinstance(given, type) or not isinstance(given, Statistic):
            shown = given.__name__ if isinstance(given, type) else type(given).__name__
            raise TypeError(
                f"A statistic is a name or an instance of `Statistic`, with name, reads, add, "
                f"merge, finish and numbers, got {shown}. The names are {', '.join(STATISTICS)}."
            )
        if not given.name.isidentifier() or given.name in RESERVED:
            raise ValueError(
                f"A statistic cannot be named {given.name!r}: a layer reads it as an attribute, "
                f"and that one is taken or no name. Rename it."
            )
        before = found.setdefault(given.name, given)
        if before != given:
            raise ValueError(
                f"Two statistics are named {given.name!r}: {before!r} and {given!r}. Rename one."
            )
    covered = {name for statistic in found.values() for name in statistic.reads.covers}
    return {name: statistic for name, statistic in found.items() if name not in covered}
