"""Shares as whole numbers: what every pool keeps, and which density is whose."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import torch
from jaxtyping import Int
from torch import Tensor

from prunus.check import closeness, fraction, matches, unknown, whole

__all__ = ["as_counts", "checked_density", "densities_of", "share"]


def checked_density(density: object, name: str = "density") -> float:
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
    if len(sizes) == 1:
        return [total]
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
