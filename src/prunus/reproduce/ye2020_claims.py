"""What docs/node_selection.md and the papers say of greedy subnetworks, judged on measured rows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prunus.bench.statistics.intervals import t_interval
from prunus.files import Rows

__all__ = ["claims", "judged"]

Numbers = Mapping[int, float]  # by seed
Claim = tuple[str, Numbers, float, float]  # the statement, and between what its number lies


def judged(values: Numbers, low: float = -math.inf, high: float = math.inf) -> tuple[str, str]:
    """(verdict, what was found): whether the mean over networks is told to lie in [low, high].

    It holds where Student's interval lies inside, does not where it lies outside; else it is not
    told, as for one network alone.
    """
    every = list(values.values())
    mean = round(math.fsum(every) / len(every), 12) + 0.0  # no −0, nor what rounding leaves
    ends = t_interval(every)
    if ends is None:
        return "not told", f"{mean:.3g}"
    found = f"{mean:.3g} ({ends[0]:.3g} to {ends[1]:.3g})"
    if low <= ends[0] and ends[1] <= high:
        return "holds", found
    if ends[1] < low or ends[0] > high:
        return "does not hold", found
    return "not told", found


@dataclass(frozen=True)
class _Measured:
    """Rows by what they are of."""

    rows: Rows
    network: str

    def of(self, layer: str, rule: str, count: float, measure: str) -> Numbers:
        """{seed: value}."""
        return self.pruned(self.network, layer, rule, count, measure)

    def pruned(self, *key: Any) -> Numbers:
        """{seed: value} of a network, layer, rule, count and measure."""
        named = ("network", "layer", "rule", "count", "measure")
        return {r["seed"]: r["value"] for r in self.rows if tuple(r[name] for name in named) == key}

    def slope(self, layer: str, rule: str, start: int, stop: int) -> Numbers:
        """Of log D against log steps."""
        ends = self.of(layer, rule, start, "D"), self.of(layer, rule, stop, "D")
        return _each(lambda a, b: math.log(b / a) / math.log(stop / start), *ends)

    def rates(self, layer: str, early: tuple[int, int], late: tuple[int, int]) -> Numbers:
        """How much faster log D of refitted factors falls a class, early over late."""
        found = []
        for start, stop in (early, late):
            ends = self.of(layer, "refit", start, "D"), self.of(layer, "refit", stop, "D")
            found.append(_each(lambda a, b, n=stop - start: math.log(a / b) / n, *ends))
        return _each(lambda a, b: a / b, *found)

    def ratio(self, layer: str, one: str, other: str, count: int, measure: str) -> Numbers:
        """log10 of one rule's over the other's."""
        both = self.of(layer, one, count, measure), self.of(layer, other, count, measure)
        return _each(lambda a, b: math.log10(a / b), *both)

    def gap(self, net: str, one: str, other: str, density: float) -> Numbers:
        """Difference of the test errors of whole networks, points."""
        both = (self.pruned(net, "all", rule, density, "test error") for rule in (one, other))
        return _each(lambda a, b: a - b, *both)


def _each(make: Callable[..., float], *parts: Numbers) -> Numbers:
    shared = set.intersection(*(set(part) for part in parts))
    return {seed: make(*(part[seed] for part in parts)) for seed in sorted(shared)}


def _of_layers(m: _Measured, first: str, second: str) -> list[Claim]:
    below = (-math.inf, 0.0)
    return [
        ("uniform multiset: D falls as n^−2 from 500 to 2000 steps (slope −2.3 to −1.7)",
         m.slope(first, "uniform, multiset", 500, 2000), -2.3, -1.7),
        ("line: no exponential fall up to 2000 steps (slope from 500 on above −3)",
         m.slope(first, "line", 500, 2000), -3.0, math.inf),
        (f"refit falls exponentially in {second}: rate at 20–30 over that at 30–50 is 0.67 to 1.5",
         m.rates(second, (20, 30), (30, 50)), 0.67, 1.5),
        (f"refit does not yet in {first}: rate at 20–30 over that at 50–100 is above 1.5",
         m.rates(first, (20, 30), (50, 100)), 1.5, math.inf),
        *[
            (f"output error of global refit below a tenth of the search's, {k} classes (log10)",
             m.ratio(first, "global refit", "published search", k, "output error"),
             -math.inf, -1.0)
            for k in (20, 30, 50, 100)
        ],
        ("global refit with 30 classes errs at most 0.5 points more than the search with 100",
         _each(lambda a, b: a - b, m.of(first, "global refit", 30, "test error"),
               m.of(first, "published search", 100, "test error")), -math.inf, 0.5),
        *[
            (f"+ls: output error of forward below that of {other}, {k} classes (log10)",
             m.ratio(first, "forward+ls", f"{other}+ls", k, "output error"), *below)
            for k in (10, 20, 30, 50)
            for other in ("published search", "line", "global refit")
        ],
        ("+ls: layer error of forward within 20 % of backward's, 50 classes (log10)",
         m.ratio(first, "forward+ls", "backward+ls", 50, "layer error"),
         math.log10(0.8), math.log10(1.2)),
        *[
            (f"+ls: layer error of forward below that of {other}, 50 classes (log10)",
             m.ratio(first, "forward+ls", f"{other}+ls", 50, "layer error"), *below)
            for other in ("refit", "line", "uniform set", "random", "L1 norm")
        ],
    ]  # fmt: skip


def _of_networks(m: _Measured, net: str, density: float) -> list[Claim]:
    at, below = f"{net} at {density}", (-math.inf, 0.0)
    found: list[Claim] = [
        (f"{at}: forward-node+ls errs no more than importance-node+ls (points)",
         m.gap(net, "forward-node+ls", "importance-node+ls", density), *below),
        (f"{at}: forward-node+ls errs no more than obs-node+ls (points)",
         m.gap(net, "forward-node+ls", "obs-node+ls", density), *below),
        (f"{at}: greedy-scales errs less than greedy-forward (points)",
         m.gap(net, "greedy-scales", "greedy-forward", density), *below),
        (f"{at}: pruned inputs lower the error of forward-node+ls (points)",
         m.gap(net, "forward-node+ls, pruned inputs", "forward-node+ls", density), *below),
    ]  # fmt: skip
    if "cnn" in net:
        found += [
            (f"{at}: importance-node+ls on pruned inputs errs less than forward-node+ls on dense "
             f"ones (points)",
             m.gap(net, "importance-node+ls, pruned inputs", "forward-node+ls", density), *below),
            (f"{at}: bare greedy-scales fails (above 40 %)",
             m.pruned(net, "all", "greedy-scales", density, "test error"), 40.0, math.inf),
        ]  # fmt: skip
    return found


def claims(rows: Rows, network: str) -> list[dict[str, str]]:
    """Each statement with its number and a verdict."""
    m = _Measured(rows, network)
    layers = list(dict.fromkeys(r["layer"] for r in rows if r["layer"] != "all"))
    said = _of_layers(m, layers[0], layers[-1])
    whole = dict.fromkeys((r["network"], r["count"]) for r in rows if r["layer"] == "all")
    for net, density in whole:
        said += _of_networks(m, net, density)
    lines = []
    for text, values, low, high in said:
        if values:
            verdict, found = judged(values, low, high)
            lines.append({"statement": text, "mean (95 % interval)": found, "verdict": verdict})
    return lines
