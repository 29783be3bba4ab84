"""The target of a pruning turned into whole numbers once: counts, their rounding, the plan."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Annotated, Any

import torch
from jaxtyping import Int
from pydantic import BeforeValidator, Field
from torch import Tensor

from prunus.check import closeness, fraction, matches, positive, unknown, whole
from prunus.counting import count_of
from prunus.notebook import view
from prunus.parts import LATER, shown
from prunus.reading import Probability, Schema, Spread, json_object, validated
from prunus.rows import RowSet

__all__ = ["RESOURCES", "Budget", "Plan", "count_of", "densities_of", "share"]

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
    example: Any = field(default=None, compare=False, repr=False)
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Whole numbers: how many units every layer (or group of nodes) keeps.

    Attributes:
        kept: {name: count, or one count per pool}.
        density: kept / total over the planned weights.
        limit: the limit the plan was made for, or None.
        kind: what the limit bounds: "density", "parameters", "predicted", "sup", …
        value: what the plan reaches of it.
        feasible: False where no plan meets the limit.
        notes: what the reader should know, such as a minimum that bound.
        rows: the samples that made or verified the plan, where data did.
    """

    kept: Mapping[str, int | Sequence[int]]
    density: float = math.nan
    limit: float | None = None
    kind: str = "density"
    value: float = math.nan
    feasible: bool = True
    notes: tuple[str, ...] = ()
    rows: RowSet | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        met = "" if self.feasible else ", NOT FEASIBLE"
        limit = "" if self.limit is None else f", limit {self.limit:.4g}, reached {self.value:.4g}"
        return (
            f"Plan({len(self.kept)} layers or groups by {self.kind}, density {self.density:.4g}"
            f"{limit}{met}; .kept, .summary())"
        )

    def to_json(self) -> str:
        """The plan as JSON, which `from_json` and `prunus prune --plan` read."""
        facts = {
            "kept": {n: k if isinstance(k, int) else list(k) for n, k in self.kept.items()},
            "density": _finite(self.density),
            "limit": self.limit,
            "kind": self.kind,
            "value": _finite(self.value),
            "feasible": self.feasible,
            "notes": list(self.notes),
            "rows": None if self.rows is None else self.rows.to_text(),
        }
        return json.dumps(facts, indent=1) + "\n"

    @staticmethod
    def from_json(text: str | bytes, source: object = "The plan") -> "Plan":
        """The plan that `to_json` or `prunus plan --out` wrote.

        A plan by hand is {"kept": {layer: count, or a list of counts}}.

        Args:
            text: of the file.
            source: its name, for messages.

        Raises:
            ValueError: the text is no such plan; the field that is wrong is named.
        """
        facts = json_object(text, source)
        if not isinstance(facts.get("kept"), dict):
            raise ValueError(
                f'{source} must be a JSON object with an object "kept" of {{layer: count}}, got '
                f"{str(text)[:60]!r}."
            )
        known = [f.name for f in fields(Plan)]
        try:
            for name in facts:
                if name not in known:
                    raise unknown("entry of a plan", name, known)
            for name, counts in facts["kept"].items():
                for count in counts if isinstance(counts, list) else [counts]:
                    whole(f"kept[{name!r}]", count, low=0)
        except ValueError as error:
            said = str(error) if source == "The plan" else f"{source}: {error}"
            raise ValueError(said) from None
        given = validated(facts, _PlanFacts, source)
        return Plan(
            kept={n: tuple(k) if isinstance(k, list) else k for n, k in given.kept.items()},
            density=math.nan if given.density is None else given.density,
            limit=given.limit,
            kind=given.kind,
            value=math.nan if given.value is None else given.value,
            feasible=given.feasible,
            notes=tuple(given.notes),
            rows=given.rows,
        )

    def summary(self) -> str:
        """The plan as text, a line per layer."""
        width = max((len(name) for name in self.kept), default=4)
        lines = [
            f"{name:<{width}}  {_counts(counts)}" for name, counts in sorted(self.kept.items())
        ]
        head = f"plan by {self.kind}: density {self.density:.4g}"
        if self.limit is not None:
            head += f", limit {self.limit:.4g}, reached {self.value:.4g}"
        if not self.feasible:
            head += ", NOT FEASIBLE"
        return "\n".join([head, *lines, *self.notes])

    def _repr_html_(self) -> str:
        rows = [{"layer or group": name, "kept": _counts(own)} for name, own in self.kept.items()]
        return view([*self.summary().splitlines()[:1], *self.notes], [rows])


def _rows(text: Any) -> RowSet | None:
    return None if text is None else RowSet.from_text(text)


class _PlanFacts(Schema):
    """A plan as `to_json` writes it; by hand, `kept` alone."""

    kept: dict[str, Any]
    density: Probability | None = None
    limit: Annotated[float, Field(ge=0)] | None = None
    kind: str = "density"
    value: Spread | None = None
    feasible: bool = True
    notes: list[str] = Field(default_factory=list)
    rows: Annotated[Any, BeforeValidator(_rows)] = None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _counts(counts: int | Sequence[int]) -> str:
    if isinstance(counts, int):
        return str(counts)
    low, high = min(counts), max(counts)
    each = f"{low}" if low == high else f"{low} to {high}"
    return f"{sum(counts)} ({each} in each of {len(counts)} pools)"


def checked_density(density: Any, name: str = "density") -> float:
    """A density as a float in (0, 1], or a ValueError."""
    if isinstance(density, bool) or not isinstance(density, int | float):
        raise ValueError(f"`{name}` must be a number in (0, 1], got {density!r}.")
    if 2 <= density <= 100:  # as people write percentages
        raise ValueError(
            f"`{name}` must lie in (0, 1], got {density!r}. Write {density / 100:g} for "
            f"{density:g} %."
        )
    return fraction(name, density, one=True)


def share(
    total: int,
    sizes: Sequence[int],
    *,
    rates: Sequence[int] | None = None,
    minimum: int | Sequence[int] = 0,
) -> list[int]:
    """`total` units split among pools by largest remainder, ties to the lower index.

    No part exceeds its pool; what a full pool cannot take goes to the others. Every part has at
    least `minimum` units (or its whole pool), met inside the total; only where these minima alone
    exceed the total are they what is returned.

    Args:
        total: units to share; at most all are given.
        sizes: units of each pool.
        rates: parts are in proportion to these; to the sizes where None.
        minimum: units that every pool gets at least; one number, or one for each.

    Example:
        >>> share(5, [4, 4, 4]), share(5, [1, 4, 4], rates=[2, 1, 1]), share(2, [9, 1], minimum=1)
        ([2, 2, 1], [1, 2, 2], [1, 1])
    """
    pulls = sizes if rates is None else rates
    wanted = [minimum] * len(sizes) if isinstance(minimum, int) else minimum
    lows = [min(low, size) for low, size in zip(wanted, sizes, strict=True)]
    total = min(total, sum(sizes))
    if total <= sum(lows):
        return lows
    level = _level(total, lows, sizes, pulls)
    top, bottom = level.numerator, level.denominator
    exact = [
        min(max(top * pull, low * bottom), size * bottom)
        for low, size, pull in zip(lows, sizes, pulls, strict=True)
    ]  # in units of 1 / bottom
    parts = [x // bottom for x in exact]
    order = sorted(range(len(parts)), key=lambda i: (-(exact[i] % bottom), i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _level(total: int, lows: Sequence[int], sizes: Sequence[int], pulls: Sequence[int]) -> Fraction:
    """The level x at which the parts x · pull, held within [low, size], add up to `total`."""
    every = sum(pulls)
    limits = list(zip(lows, sizes, pulls, strict=True))
    if all(low * every <= total * pull <= size * every for low, size, pull in limits):
        return Fraction(total, every)
    turns = sorted(Fraction(x, pull) for low, size, pull in limits for x in (low, size) if pull)

    def given(x: Fraction) -> Fraction:
        parts = [min(max(x * pull, Fraction(low)), Fraction(size)) for low, size, pull in limits]
        return sum(parts, Fraction(0))

    # The parts grow with the level, and straight between the turns.
    at = next(i for i, turn in enumerate(turns) if given(turn) >= total)
    below, above = turns[at - 1] if at else Fraction(0), turns[at]
    low, high = given(below), given(above)
    return above if high == low else below + (above - below) * (total - low) / (high - low)


def densities_of(
    density: Mapping[str, float],
    names: Iterable[str],
    *,
    members: Mapping[str, Sequence[str]] | None = None,
    refused: Mapping[str, str] | None = None,
    shared: bool = True,
) -> dict[str, float]:
    """A density per name from {name or glob: density}; what nothing matches stays 1.

    An exact name counts before every glob, of globs the nearer one (`check.closeness`), of equally
    near ones the first.

    Args:
        density: by layer name or glob.
        names: of the layers, or of the groups of channels.
        members: for groups, the layers whose channels each holds; a glob that matches one of them
            counts for the whole group, and a layer's density for all of its groups.
        refused: layers that have none, with the reasons.
        shared: the members of a group share what is kept, and cannot have two densities.

    Raises:
        ValueError: a density outside (0, 1], a glob that matches nothing or only what others are
            nearer to, or two layers of one group with different densities.
    """
    aliases = {name: dict.fromkeys((name, *(members or {}).get(name, ()))) for name in names}
    known = list(dict.fromkeys(alias for own in aliases.values() for alias in own))
    checked = {
        glob: checked_density(value, f"density[{glob!r}]") for glob, value in density.items()
    }
    for glob in list(checked):
        if any(matches(name, glob) for name in known):
            continue
        inside = f"{glob}.*"  # a module of several layers, as recurrent ones are, means all of them
        if any(matches(name, inside) for name in known):
            checked[inside] = checked.pop(glob)
            continue
        for name, why in (refused or {}).items():
            if matches(name, glob) or matches(name, inside):
                raise ValueError(f"Layer {name!r} has nothing to prune: {why}.")
        raise unknown("layer or glob", glob, known)
    found = {}
    reached = set()
    for name, own in aliases.items():
        fitting = [glob for glob in checked if any(matches(alias, glob) for alias in own)]
        first = max(fitting, key=lambda g: (g in own, closeness(g)), default=None)
        found[name] = 1.0 if first is None else checked[first]
        reached |= {first, *(glob for glob in fitting if glob in own)}
        others = [alias for alias in own if checked.get(alias, found[name]) != found[name]]
        if shared and first in own and others:
            given = ", ".join(f"{alias!r}: {checked[alias]:g}" for alias in (first, *others))
            raise ValueError(
                f"The layers {', '.join(map(repr, (first, *others)))} share their channels, and "
                f"can only have one density, got {{{given}}}. Give one of them."
            )
    for glob in checked:
        if glob not in reached:
            raise ValueError(
                f"density[{glob!r}] reaches no layer: each that it matches has a nearer entry. "
                f"Remove it."
            )
    return found


def as_counts(
    name: str, counts: int | Sequence[int] | Tensor, sizes: Sequence[int]
) -> Int[Tensor, " pools"]:
    """A plan's entry as one count per pool, checked against the pools' sizes.

    One number for several pools is the total, shared by largest remainder.
    """
    if isinstance(counts, Tensor):
        counts = counts.tolist()
    if isinstance(counts, int | float):
        whole(f"plan[{name!r}]", counts, low=0, high=sum(sizes))
        counts = share(int(counts), sizes)
    if len(counts) != len(sizes) or any(
        not 0 <= k <= n for k, n in zip(counts, sizes, strict=False)
    ):
        raise ValueError(
            f"The plan for {name!r} must give at most {sum(sizes)} kept units, or one count for "
            f"each of its {len(sizes)} pools, got {counts if len(counts) < 9 else len(counts)}."
        )
    return torch.tensor(list(counts), dtype=torch.int64)
