"""The layers whose weights pruning changed, and how far that moves their outputs on data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from prunus.calibration.batches import call, size_of, to_device
from prunus.calibration.gather import watched
from prunus.calibration.place import device_of
from prunus.calibration.select import prunable
from prunus.calibration.statistics import Reads, Vectors
from prunus.layer import Layer
from prunus.modes import evaluating
from prunus.parts import NODES
from prunus.views import ConvView, TransposedConvView, batched
from prunus.weights import Weight, weights_of

__all__ = ["Change", "Fresh", "Seen", "changes_of", "fresh_errors"]

PIECE = 2**22  # numbers of a piece of a layer's input vectors


@dataclass(frozen=True, eq=False, kw_only=True)
class Change:
    """A layer's weights before and after, as matrices.

    Attributes:
        weight: before, float64.
        new: after.
        shift: b' − b, or None where no bias moved.
        live: outputs that anything still reads.
        groups: convolution groups.
    """

    weight: Float64[Tensor, "out in"]
    new: Float64[Tensor, "out in"]
    shift: Float64[Tensor, " out"] | None
    live: Bool[Tensor, " out"]
    groups: int

    def relative(self, x: Float[Tensor, "positions groups in"]) -> Float[Tensor, "positions out"]:
        """|z'(x) − z(x)| / Σ |w| |x| of the live outputs; ∞ where the sum is 0 and z is not."""
        moved = self._times(x, self.new - self.weight)
        moved = moved.abs() if self.shift is None else (moved + self.shift).abs()
        whole = self._times(x.abs(), self.weight.abs())
        ratio = torch.where(whole > 0, moved / whole, torch.where(moved > 0, torch.inf, 0.0))
        return ratio[:, self.live]

    def condition(self, x: Float[Tensor, "positions groups in"]) -> Float[Tensor, " numbers"]:
        """Σ |w| |x| / |z|: by how much an error relative to the sum exceeds one relative to z."""
        z = self._times(x, self.weight)[:, self.live]
        whole = self._times(x.abs(), self.weight.abs())[:, self.live]
        return (whole[whole > 0] / z[whole > 0].abs()).flatten()

    def _times(self, x: Tensor, matrix: Tensor) -> Float[Tensor, "positions out"]:
        blocks = matrix.reshape(self.groups, -1, matrix.shape[1])
        return torch.einsum("pgi,goi->pgo", x, blocks).flatten(1)


@dataclass(frozen=True, eq=False)
class Seen:
    """max over input vectors of the largest and of the mean relative error, (2 rows, 1)."""

    changes: Mapping[str, Change]
    name: ClassVar[str] = "relative"
    reads: ClassVar[Reads] = Reads(source="inputs", axis="group")

    def add(self, total: Tensor | None, reading: Vectors, layer: Layer) -> Tensor:
        found = self.changes[layer.name].relative(reading.values.cpu())
        most = torch.stack([found.amax(1).max(), found.mean(1).max()])
        # The first axis is that of the groups, all of which have the same numbers.
        most = most.expand(reading.values.shape[1], 2).to(reading.values, copy=True)
        return most if total is None else torch.maximum(total, most)

    def merge(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.maximum(one, other)

    def finish(self, total: Tensor, count: int) -> Tensor:
        return total

    def numbers(self, out: int, wide: int, groups: int) -> int:
        return 2 * groups


@dataclass
class Fresh:
    """Of one layer on fresh inputs: a number per sample, and conditions of the first ones."""

    largest: list[Tensor] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)
    conditions: list[Tensor] = field(default_factory=list)


def changes_of(
    model: nn.Module, thin: nn.Module, units: str | None
) -> tuple[dict[str, Change], list[str]]:
    """The layers whose weights differ, in order, and those of them that are no layers alone."""
    others, known = weights_of(thin), prunable(model, asked=True)[0]
    found: dict[str, Change] = {}
    left: list[str] = []
    for name, weight in weights_of(model).items():
        if name not in others:
            continue
        old, new = (w.matrix().detach().cpu().double() for w in (weight, others[name]))
        if old.shape != new.shape or torch.equal(old, new):
            continue
        if name not in known or not weight.source.alone:
            left.append(name)
            continue
        live = torch.ones(len(old), dtype=torch.bool)
        if units == NODES:  # rows of removed nodes are read by nobody
            live = new.any(1) | ~old.any(1)
        biases = weight.bias(), others[name].bias()
        shift = None
        if biases[0] is not None and biases[1] is not None:
            moved = (biases[1].cpu().double() - biases[0].cpu().double()) * live
            shift = moved if bool(moved.any()) else None
        if not bool(live.any()) or (shift is None and torch.equal(old[live], new[live])):
            continue  # all that changed is read by nobody
        found[name] = Change(
            weight=old, new=new, shift=shift, live=live, groups=weight.source.groups
        )
    return found, left


def fresh_errors(
    model: nn.Module, changes: Mapping[str, Change], read: Sequence[Any]
) -> dict[str, Fresh]:
    """Each sample's largest and mean relative error in every layer, at dense inputs."""
    found: dict[str, Fresh] = {}
    if not read:
        return found
    weights = {name: w for name, w in weights_of(model).items() if name in changes}
    current: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def take(weight: Weight, inputs: Tensor) -> None:
        change, own = changes[weight.name], found.setdefault(weight.name, Fresh())
        kernels = isinstance(weight.view, ConvView | TransposedConvView)
        given = batched(weight.module, inputs) if kernels else inputs
        given = given[None] if given.ndim == 1 else given
        size = max(1, given[:1].numel()) * max(1, weight.source.taps)
        size = max(size, len(change.weight))
        pieces = []
        for piece in torch.split(given, max(1, PIECE // size)):
            x = weight.view.vectors(weight.module, piece).detach().cpu().double()
            if not own.conditions:
                own.conditions.append(change.condition(x))
            relative = change.relative(x).reshape(len(piece), -1, int(change.live.sum()))
            pieces.append((relative.amax((1, 2)), relative.mean(2).amax(1)))
        once = (torch.cat([p[0] for p in pieces]), torch.cat([p[1] for p in pieces]))
        current.setdefault(weight.name, []).append(once)

    with evaluating(model), torch.no_grad(), watched(weights, take):
        for i, batch in enumerate(read):
            current.clear()
            call(model, to_device(batch, device_of(model)), i)
            for name, calls in current.items():
                if any(len(largest) != size_of(batch) for largest, _ in calls):
                    continue  # its first axis is not that of the samples
                found[name].largest.append(torch.stack([c[0] for c in calls]).amax(0))
                found[name].mean.append(torch.stack([c[1] for c in calls]).amax(0))
    return {name: own for name, own in found.items() if own.largest}
