"""The allocation that knows what each layer's pruning costs in error."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from prunus.allocation.growth import CostOf, Growth, Pools, largest, short_of
from prunus.allocation.rules import Allocation, bound_notes, plan_of
from prunus.budget import Budget, Plan, count_of, share
from prunus.check import whole
from prunus.parts import EDGES
from prunus.theory.gap.plan import allocate

__all__ = ["Planned"]

Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Planned(Allocation):
    """Counts of least total error, from one error curve per layer.

    For a density (or parameters, …) units are given where they lower the error most, along the
    lower convex hulls of the curves. For a gap it is the least number of units with
    Σ error ≤ gap², by dynamic programming (`prunus.theory.gap.plan.allocate`).

    Attributes:
        curves: {name: (kept, error), …}, errors as mean squared gaps that pruning this layer alone
            to so many units leaves. `prune` measures them where there are none.
        minimum: units that every pool keeps at least, met inside the total; 0 lets layers
            collapse.

    References:
        docs/gap.md, "Plans".
    """

    curves: Any = ()
    minimum: int = 1
    serves: ClassVar[tuple[str, ...]] = (EDGES,)

    def __post_init__(self) -> None:
        whole("minimum", self.minimum, low=0)
        given = self.curves.items() if isinstance(self.curves, Mapping) else self.curves
        frozen = tuple((str(name), _curve(name, points)) for name, points in given)
        object.__setattr__(self, "curves", frozen)

    @property
    def measures_curves(self) -> bool:
        """Where none were given."""
        return not self.curves

    def measured(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> Allocation:
        """The same rule with these curves."""
        return replace(self, curves=curves)

    def __call__(self, pools: Pools, cost: CostOf, budget: Budget) -> Plan:
        """The plan for a budget.

        Raises:
            ValueError: there are no curves, or none for a layer; or the units are nodes.
        """
        if cost.nodes:
            raise ValueError(
                "Planned() shares single weights among layers, got nodes. Use Uniform() or "
                "Global()."
            )
        curves = dict(self.curves)
        missing = [name for name in pools if name not in curves]
        if missing:
            raise ValueError(
                f"Planned() has no error curve for {missing[0]!r}. Let `prune` measure the curves "
                f"on its data, or give one (kept, error), … per layer."
            )
        if budget.gap is not None:
            return self._within(pools, cost, budget.gap)
        plan_at, low, high = _growth(pools, curves, self.minimum)
        asked = None
        if budget.target == "density":
            asked = count_of(budget.value, high)
            kept = plan_at(max(asked, low))
        else:
            kept = plan_at(largest(plan_at, low, high, cost, budget))
        short = short_of(kept, _growth(pools, curves, 0), pools, self.minimum)
        return plan_of(kept, cost, budget, bound_notes(short, self.minimum), asked=asked)

    def _within(self, pools: Pools, cost: CostOf, gap: float) -> Plan:
        rows = [_options(name, pools[name].numel(), dict(self.curves)[name]) for name in pools]
        costs = [np.array([k for k, _ in row], dtype=np.float64) for row in rows]
        errors = [np.array([e for _, e in row]) for row in rows]
        found = allocate(costs, errors, gap**2)
        kept = {name: int(c[g]) for name, c, g in zip(pools, costs, found.choices, strict=True)}
        counts = {
            name: torch.tensor(share(k, [pools[name].shape[1]] * len(pools[name])))
            for name, k in kept.items()
        }
        return Plan(
            kept=kept,
            density=cost(counts).density,
            limit=gap,
            kind="predicted",
            value=math.sqrt(found.error),
            notes=("the layers' squared gaps are added, as if they were independent",),
        )


def _curve(name: Any, points: Sequence[Any]) -> Curve:
    found = tuple(sorted((int(kept), float(error)) for kept, error in points))
    if not found or any(not math.isfinite(e) or e < 0 for _, e in found):
        raise ValueError(
            f"The error curve of {name!r} must be (kept, error), … with errors >= 0, got "
            f"{points!r}."
        )
    return found


def _options(name: str, size: int, curve: Curve) -> list[tuple[int, float]]:
    """The curve from the whole layer downwards, without error where nothing is removed."""
    inner = [(k, e) for k, e in reversed(curve) if k < size]
    if any(k < 0 for k, _ in inner) or curve[-1][0] > size:
        raise ValueError(f"The error curve of {name!r} leaves its {size} units.")
    return [(size, 0.0), *inner]


def _growth(pools: Pools, curves: Mapping[str, Curve], minimum: int) -> Growth:
    """Plans that give the next unit to the layer whose hull falls most steeply."""
    names = list(pools)
    start, steps = {}, []
    for i, name in enumerate(names):
        n_pools, n_units = pools[name].shape
        size = n_pools * n_units
        start[name] = n_pools * min(minimum, n_units)
        hull = _hull(list(reversed(_options(name, size, curves[name]))))
        steps.append((math.inf, i, max(0, hull[0][0] - start[name])))  # no curve so far down
        for (k, e), (further, less) in itertools.pairwise(hull):
            length = further - max(k, start[name])
            if length > 0:
                steps.append(((e - less) / (further - k), i, length))
    steps.sort(key=lambda step: -step[0])  # stable, and a hull's slopes fall
    low = sum(start.values())

    def plan_at(total: int) -> dict[str, torch.Tensor]:
        left, more = total - low, [0] * len(names)
        for _, i, length in steps:
            taken = min(left, length)
            more[i] += taken
            left -= taken
            if left <= 0:
                break
        found = {}
        for i, name in enumerate(names):
            n_pools, n_units = pools[name].shape
            parts = share(start[name] + more[i], [n_units] * n_pools, minimum=minimum)
            found[name] = torch.tensor(parts)
        return found

    return plan_at, low, sum(p.numel() for p in pools.values())


def _hull(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Lower convex hull of points with rising first entries; errors are made to fall first."""
    falling, most = [], 0.0
    for k, e in reversed(points):
        most = max(most, e)
        falling.append((k, most))
    hull: list[tuple[int, float]] = []
    for k, e in reversed(falling):
        while len(hull) > 1:
            (a, ea), (b, eb) = hull[-2], hull[-1]
            if (eb - ea) * (k - a) >= (e - ea) * (b - a):  # b lies on or above the chord
                hull.pop()
            else:
                break
        hull.append((k, e))
    return hull
