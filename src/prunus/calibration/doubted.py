"""What a folder says of a calibration, held against itself before anything is made of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from prunus.calibration.statistics import (
    ClassSlopes,
    Matrix,
    SampleSlopes,
    Source,
    Statistic,
    Vectors,
)
from prunus.layer import Layer
from prunus.reading import Count, Schema, Size, check

__all__ = ["LayerFacts", "StoredFacts", "checked_layer", "checked_sums"]


class LayerFacts(Schema):
    """A layer as the account has it; version 0.1 kept one count."""

    groups: Size
    taps: Size
    counts: dict[Source, Count] | None = None
    count: Count | None = None

    def by_source(self) -> dict[Source, int]:
        """Vectors in the sums, where there are any."""
        if self.counts is None:
            return {"inputs": self.count} if self.count else {}
        return {source: n for source, n in self.counts.items() if n}


class StoredFacts(Schema):
    """`calibration.json`."""

    format: Count
    statistics: list[str]
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    fingerprint: str
    samples: Count
    refused: dict[str, str]
    unseen: dict[str, str] = Field(default_factory=dict)
    layers: dict[str, LayerFacts]
    groups: dict[str, list[str]] = Field(default_factory=dict)
    hash: str = ""
    files: dict[str, str] = Field(default_factory=dict)


def checked_layer(path: Path, name: str, facts: LayerFacts, found: dict[str, Tensor]) -> Layer:
    """The layer without its statistics; its weight and bias are taken out of `found`.

    Raises:
        ValueError: a tensor is missing, or none of a layer; the file is named.
    """
    place = f"layers.{name}"
    old = facts.counts is None
    check(facts.count is not None or not old, path, f"{place}.counts", "is missing.")
    check("weight" in found, path, place, "has no weight among the tensors.")
    weight, bias = found.pop("weight"), found.pop("bias", None)
    shown = f"has a weight of shape {tuple(weight.shape)}, {weight.dtype}"
    check(weight.ndim == 2 and weight.is_floating_point(), path, place, f"{shown}: no matrix.")
    out, wide = weight.shape
    check(out % facts.groups == 0, path, f"{place}.groups", f"does not divide {out} outputs.")
    check(wide % facts.taps == 0, path, f"{place}.taps", f"does not divide {wide} inputs.")
    check(bool(torch.isfinite(weight).all()), path, place, "has NaN or infinite weights.")
    if bias is not None:
        right = bias.shape == weight.shape[:1] and bias.is_floating_point()
        check(right, path, place, f"{shown} and a bias of shape {tuple(bias.shape)}.")
    return Layer(name=name, weight=weight, bias=bias, groups=facts.groups, taps=facts.taps)


def checked_sums(
    path: Path,
    place: str,
    sums: Mapping[str, Tensor],
    statistics: Mapping[str, Statistic],
    sizes: tuple[int, int, int],
    *,
    classes: bool,
) -> dict[str, Tensor]:
    """Sums of one layer, or of one group of channel classes.

    Args:
        path: the account, for messages.
        place: the field, for messages.
        sums: by statistic.
        statistics: that the account names.
        sizes: outputs, inputs and convolution groups; of classes, their number twice, and 1.
        classes: whether they are of channel classes.

    Raises:
        ValueError: of an unknown statistic, or not as many numbers, or not in the shape, that the
            statistic has for these sizes.
    """
    for name, value in sums.items():
        check(name in statistics, path, place, f"has sums of {name!r}, which `statistics` lacks.")
        statistic = statistics[name]
        right = (statistic.reads.source == "classes") == classes
        check(right, path, place, f"has sums of {name!r}, which are none of its kind.")
        shown = f"has sums of {name!r} of shape {tuple(value.shape)}, {value.dtype}"
        numbers, shape = statistic.numbers(*sizes), _shape(statistic, sizes)
        good = value.dtype == torch.float64 and value.numel() == numbers
        wanted = f"{numbers} numbers" if shape is None else f"shape {shape}"
        good = good and (shape is None or tuple(value.shape) == shape)
        check(good, path, place, f"{shown}; they have {wanted}, float64.")
    return dict(sums)


def _shape(statistic: Statistic, sizes: tuple[int, int, int]) -> tuple[int, ...] | None:
    """The shape of the sums, found without memory; None where a statistic reads its numbers."""
    out, wide, groups = sizes

    def blank(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device="meta")

    layer = Layer(name="", weight=blank(out, wide), groups=groups)
    source = statistic.reads.source
    reading: Any
    if source in ("inputs", "outputs"):
        width = wide if source == "inputs" else out // groups
        reading = Vectors(values=blank(1, groups, width), total=blank(groups, width))
    elif source == "slopes":
        reading = SampleSlopes(
            inputs=blank(1, 1, groups, wide), slopes=blank(1, 1, groups, out // groups)
        )
    elif source == "classes":
        reading = ClassSlopes(blank(1, out))
    else:
        reading = Matrix(blank(out, wide))
    try:
        return tuple(statistic.add(None, reading, layer).shape)
    except Exception:  # one's own statistic may look at the numbers, of which there are none
        return None
