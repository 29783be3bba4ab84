"""Scores against costs: Pareto fronts, and scores at fixed compression ratios."""

import math
from collections.abc import Sequence

from prunus.files import Row, Rows
from prunus.means import as_loss

__all__ = ["COMPRESSIONS", "pareto", "shrinkbench"]

COMPRESSIONS = (2, 4, 8, 16, 32)  # Blalock et al. (2020), section 6


def pareto(rows: Rows, cost: str, value: str, *, higher: bool) -> list[bool]:
    """Which rows no other row beats in one of `cost` (low) and `value` and equals in the other.

    Rows that lack either, or whose value is NaN or infinitely bad, are never on the front.
    """
    points = [
        None
        if r.get(cost) is None or r.get(value) is None
        else (r[cost], as_loss(r[value], higher=higher))
        for r in rows
    ]
    best, front = math.inf, [False] * len(points)
    known = [i for i, p in enumerate(points) if p is not None]
    known.sort(key=lambda i: points[i])  # type: ignore[arg-type, return-value]
    last: tuple[float, float] | None = None
    for i in known:
        point = points[i]
        assert point is not None  # only known points are in the list
        if point[1] < best or point == last:
            front[i] = True
            best, last = point[1], point
    return front


def shrinkbench(rows: Rows, compressions: Sequence[float] = COMPRESSIONS) -> list[Row]:
    """Scores at fixed compression ratios of the whole network, from rows of `group_rows`.

    Between two measured ratios the mean is interpolated linearly in the logarithm of the ratio;
    beyond them there is no row. A measured ratio within 2 % counts as the ratio itself.

    Returns:
        rows with `task`, `schedule`, `recipe`, `compression`, `mean` and `how`: "measured" or
        "interpolated".

    References:
        Blalock et al. (2020), What is the state of neural network pruning?, section 6.
    """
    curves: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row.get("compression") is not None:
            key = (row["task"], row["schedule"], row["recipe"])
            curves.setdefault(key, []).append((row["compression"], row["mean"]))
    found = []
    for (task, schedule, recipe), points in curves.items():
        points.sort()
        for ratio in compressions:
            value, how = _at(points, ratio)
            if value is not None:
                found.append(
                    {"task": task, "schedule": schedule, "recipe": recipe,
                     "compression": ratio, "mean": value, "how": how}
                )  # fmt: skip
    return found


def _at(points: Sequence[tuple[float, float]], ratio: float) -> tuple[float | None, str]:
    near = min(points, key=lambda p: abs(math.log(p[0] / ratio)))
    if abs(near[0] / ratio - 1) <= 0.02:
        return near[1], "measured"
    below = [p for p in points if p[0] < ratio]
    above = [p for p in points if p[0] > ratio]
    if not below or not above:
        return None, ""
    (x0, y0), (x1, y1) = below[-1], above[0]
    share = math.log(ratio / x0) / math.log(x1 / x0)
    return y0 + share * (y1 - y0), "interpolated"
