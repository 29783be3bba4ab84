"""What the pruned network may cost: one limit of several kinds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from prunus.budget.counts import checked_density
from prunus.budget.plan import Plan
from prunus.check import fraction, positive, unknown, whole
from prunus.hints import Batch
from prunus.parts import LATER, shown

__all__ = ["CODERS", "RESOURCES", "STORED", "TARGETS", "Budget", "Density"]

STORED = "stored"
CODERS = (STORED, "compressed")
TARGETS = ("density", "parameters", "macs", "bytes", "latency", "gap", "drop")
RESOURCES = ("parameters", "macs", "bytes", "latency")  # of the whole network


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the pruned network may cost; exactly one target.

    Attributes:
        density: kept / total of the weights in the selected layers, in (0, 1].
        parameters: parameters of the whole network, a whole number.
        macs: multiply-adds of one sample through the whole network.
        bytes: bytes of the stored network; with `coder="compressed"` those of the lossless file of
            `prunus.export.compress`, counted as the most that it can take.
        latency: share of the dense network's latency, in (0, 1]; needs `example`.
        example: the input whose latency counts.
        gap: limit on the gap between the networks, with `delta` and `kind` as in `prunus.plan`.
        drop: how much worse than the dense network's the metric of `evaluate` may be, in the
            metric's own unit: 0.01 is a point of an accuracy in [0, 1]. The lowest density within
            it is searched by bisection, with an evaluation for each density that is tried.
        metric: the entry of `evaluate`'s dict that `drop` is about; the first where None.
        higher_is_better: of the metric; None takes it from what pruning to 1/64 does to it.
        tries: densities that are tried at most.
    """

    density: float | None = None
    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    latency: float | None = None
    example: Batch = field(default=None, compare=False, repr=False)
    gap: float | None = None
    delta: float = 0.05
    kind: str = "predicted"
    coder: str = field(default=STORED, metadata={LATER: True})
    drop: float | None = field(default=None, metadata={LATER: True})
    metric: str | None = field(default=None, metadata={LATER: True})
    higher_is_better: bool | None = field(default=None, metadata={LATER: True})
    tries: int = field(default=16, metadata={LATER: True})
    __repr__ = shown

    def __post_init__(self) -> None:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"A budget has exactly one target, got {', '.join(given) or 'none'}. "
                f"Give one of {', '.join(TARGETS)}."
            )
        if given[0] in ("density", "latency"):
            checked_density(getattr(self, given[0]), given[0])
        elif given[0] in ("parameters", "macs", "bytes"):
            whole(given[0], getattr(self, given[0]), low=1)
        else:
            positive(given[0], getattr(self, given[0]), zero=given[0] == "drop")
        if self.latency is not None and self.example is None:
            raise ValueError("A latency budget needs `example`, the input whose latency counts.")
        fraction("delta", self.delta)
        if self.coder not in CODERS:
            raise unknown("coder", str(self.coder), CODERS)
        if self.coder != STORED and self.bytes is None:
            raise ValueError(f"`coder` belongs to a budget of bytes, got one of {self.target}.")
        whole("tries", self.tries, low=2)
        if self.drop is None and (self.metric is not None or self.higher_is_better is not None):
            raise ValueError(
                f"`metric` and `higher_is_better` belong to a budget of `drop`, got one of "
                f"{self.target}. Give drop=, how much worse the metric may be."
            )

    @property
    def target(self) -> str:
        """The name of the target."""
        return next(name for name in TARGETS if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """The target's number."""
        return float(getattr(self, self.target))

    def step(self, part: float, full: float | None = None) -> "Budget":
        """The budget after a share `part` of an iterative schedule, by geometric interpolation.

        Densities and latencies start from 1; the others start from `full`, the dense cost.
        """
        if part >= 1:
            return self
        start = 1.0 if self.target in ("density", "latency") else full
        if self.target == "gap" or start is None:
            raise ValueError(
                f"A budget of {self.target} cannot be spread over several steps. "
                f"Use a one-shot schedule or a density."
            )
        value: float = start ** (1 - part) * self.value**part
        if self.target not in ("density", "latency"):
            value = math.floor(value)
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return Budget(**{**given, self.target: value})


# What stands in the place of a density: kept / total, {name or glob: kept / total}, a limit, or
# whole numbers. None where the granularity fixes it.
Density = float | Mapping[str, float] | Budget | Plan | None
