"""Statistics of inputs that already pruned predecessors give, beside the dense model's inputs."""

from collections.abc import Mapping
from dataclasses import replace

from prunus.calibration.gather import Gatherer
from prunus.calibration.statistics import Statistic
from prunus.layer import Layer

__all__ = ["TOWARDS_DENSE", "beside", "carried"]

# What least squares towards the dense outputs reads.
TOWARDS_DENSE = ("gram", "mean", "cross", "dense_gram", "dense_mean")


def carried(
    bare: Layer, gatherer: Gatherer, statistics: Mapping[str, Statistic], before: Layer | None
) -> Layer:
    """A layer with what was gathered, and what of `statistics` stays the dense model's.

    Of the dense model's other statistics none is taken over: they are of other inputs.

    Raises:
        ValueError: the layer never ran on the data.
    """
    sums = gatherer.sums.get(bare.name)
    if sums is None or not any(sums.counts.values()):
        raise ValueError(f"Layer {bare.name!r} never ran on the data. Check the model's forward.")
    found = sums.layer(replace(bare, statistics={}), statistics, 0)
    if before is None:
        return found
    return _with(before, found, statistics)


def beside(bare: Layer, other: Layer, statistics: Mapping[str, Statistic]) -> Layer:
    """A layer with the sequential statistics of another one, whose inputs are its own.

    Args:
        bare: the layer, with what was collected of the whole network.
        other: as `carried` gives it.
        statistics: those that were collected.
    """
    own = {n: v for n, v in other.statistics.items() if statistics[n].reads.sequential}
    found = replace(bare, samples=other.samples, statistics=own, axes=other.axes)
    return _with(bare, found, statistics)


def _with(before: Layer, found: Layer, statistics: Mapping[str, Statistic]) -> Layer:
    """`found` with the statistics of `before` that are not made anew."""
    stay = {
        key: before.statistics[key]
        for key, s in statistics.items()
        if not s.reads.sequential and key in before.statistics
    }
    return replace(
        found,
        producer=before.producer,
        classes=before.classes,
        statistics={**stay, **found.statistics},
    )
