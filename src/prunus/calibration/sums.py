"""Running sums of one layer's statistics: merged, moved, and turned into what they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from prunus.calibration.statistics import Source, Statistic
from prunus.layer import Layer, squeeze_groups

__all__ = ["Made", "Sums"]

Made = dict[tuple[str, int, int, int], Tensor]  # by statistic, sums, count and groups


@dataclass(eq=False)
class Sums:
    """Sums of one layer, or of the channel classes of one group, in float64.

    Attributes:
        counts: vectors in the sums, by source; only those of vectors are counted here.
        totals: {name of the statistic: sums}.
        consumers: of a group, the layers that read its classes.
    """

    counts: dict[Source, int] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    consumers: tuple[str, ...] = ()

    def put(self, statistic: Statistic, part: Tensor) -> None:
        """Merge the sums of one more part of the data."""
        before = self.totals.get(statistic.name)
        self.totals[statistic.name] = part if before is None else statistic.merge(before, part)

    def merged(self, other: "Sums", statistics: Mapping[str, Statistic]) -> "Sums":
        """The sums over both data sets.

        Raises:
            ValueError: they are sums of different statistics, or of layers of different shapes.
        """
        if set(self.totals) != set(other.totals):
            raise ValueError(
                f"Only calibrations with the same statistics can be merged, got "
                f"{sorted(self.totals)} and {sorted(other.totals)}."
            )
        found = Sums(
            {
                source: self.counts.get(source, 0) + other.counts.get(source, 0)
                for source in {**self.counts, **other.counts}
            },
            consumers=self.consumers,
        )
        for name, value in self.totals.items():
            theirs = other.totals[name]
            if value.shape != theirs.shape:
                raise ValueError(
                    f"Statistics {name!r} of shapes {tuple(value.shape)} and "
                    f"{tuple(theirs.shape)} cannot be merged: the layers differ."
                )
            found.totals[name] = statistics[name].merge(value, theirs.to(value.device))
        return found

    def to(self, device: torch.device) -> "Sums":
        """The same sums on a device."""
        return replace(self, totals={key: value.to(device) for key, value in self.totals.items()})

    def finished(
        self,
        statistics: Mapping[str, Statistic],
        samples: int,
        groups: int,
        made: Made | None = None,
    ) -> dict[str, Tensor]:
        """What the sums stand for; statistics per convolution group lose the axis of a single one.

        Args:
            statistics: by name, at least those of which there are sums.
            samples: of the model, over which gradients are averaged.
            groups: convolution groups of the layer.
            made: what other layers' sums stand for; the same sums stand for the same tensor.
        """
        found = {}
        for name, total in self.totals.items():
            reads = statistics[name].reads
            # Weights are read once, however many samples there are.
            count = 1 if reads.source == "weights" else self.counts.get(reads.source, samples)
            key = (name, id(total), count, groups)
            known = None if made is None else made.get(key)
            if known is None:
                value = statistics[name].finish(total, count)
                known = squeeze_groups(value, groups) if reads.axis == "group" else value
            if made is not None:
                made[key] = known
            found[name] = known
        return found

    def layer(
        self,
        bare: Layer,
        statistics: Mapping[str, Statistic],
        samples: int,
        made: Made | None = None,
    ) -> Layer:
        """The layer with its statistics; see `finished`."""
        vectors = max(self.counts.values(), default=0)
        return replace(
            bare,
            samples=vectors or samples,
            statistics={**bare.statistics, **self.finished(statistics, samples, bare.groups, made)},
            axes={**bare.axes, **{name: s.reads.axis for name, s in statistics.items()}},
        )
