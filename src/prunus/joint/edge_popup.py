"""Edge-popup: a subnetwork of weights that are never trained, found by training scores."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from prunus.calibration.batches import Batches, call, to_device
from prunus.calibration.forward import loss_of
from prunus.check import positive, unknown, whole
from prunus.granularity import Granularity, pooled, unpooled
from prunus.inputs import samples_of
from prunus.joint.protocol import JointResult, NetworkJoint
from prunus.layer import Layer
from prunus.parts import Composition
from prunus.progress import progress_bar
from prunus.rng import generator_for
from prunus.selection import top_k_mask
from prunus.weights import weight_at

__all__ = ["EdgePopup"]

LEAST = 400  # optimizer steps, where the number of epochs is left open
START = 0.1  # scores start uniform in ±START in every layer: on one scale
WEIGHTS = ("signed", "kept")
RANKS = ("absolute", "signed")


@dataclass(frozen=True)
class EdgePopup(NetworkJoint):
    """Masks of fixed weights, by gradient descent on one score per weight.

    Forward, a layer uses W ∘ m with m the highest |s| of each pool; backward, m is taken as |s|:
    ∂L/∂s = sign(s) · W · ∂L/∂(W ∘ m), also for weights that are masked now and may so come back.
    Adam, its rate falling as a cosine to 0; the density falls geometrically from 1 to its end over
    the first half. Norms keep the statistics they have, and dropout is off: the search sees the
    network as it will be evaluated. Biases stay as they are.

    Departures from the paper: Adam for SGD, the falling density, and scores that start on one scale
    in all layers.

    Attributes:
        weights: "signed" draws W = ±√(2 / fan-in) / √density, so that a kept row has the variance
            of a dense one; "kept" searches among the weights that are there.
        epochs: passes over the data; the fewest with 400 steps where None.
        rate: of Adam, at the start.
        batch: samples of a step, drawn without replacement from each batch of the data.
        rank: "absolute" ranks |s|, as the authors' code; "signed" ranks s.
        anneal: False keeps the density at its end from the first step, as published.

    References:
        Ramanujan, Wortsman, Kembhavi, Farhadi, Rastegari (2020), What's hidden in a randomly
        weighted neural network?
    """

    weights: Literal["signed", "kept"] = "signed"
    epochs: int | None = None
    rate: float = 0.005
    batch: int = 128
    rank: Literal["absolute", "signed"] = "absolute"
    anneal: bool = True
    statistics: ClassVar[tuple[str, ...]] = ()
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise unknown("weights of EdgePopup", str(self.weights), WEIGHTS)
        if self.rank not in RANKS:
            raise unknown("rank of EdgePopup", str(self.rank), RANKS)
        if self.epochs is not None:
            whole("epochs", self.epochs, low=1)
        positive("rate", self.rate)
        whole("batch", self.batch, low=1)

    @property
    def refits(self) -> bool:
        """Where weights are drawn anew."""
        return self.weights == "signed"

    def beside(self, recipe: Composition) -> str | None:
        """Refuses what no such method stands beside, and new values for weights that are found."""
        if recipe.compensation.refits:
            return (
                f"{self!r} finds which weights do as they are, so `compensation` must be "
                f"NoCompensation(), got {recipe.compensation!r}."
            )
        return NetworkJoint.beside(self, recipe)

    def __call__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        kept: Mapping[str, Int[Tensor, " pools"]],
        batches: Batches,
        *,
        loss: Callable[[Any, Any], Tensor] | None,
        granularity: Granularity,
        seed: int,
        progress: bool | None,
    ) -> dict[str, JointResult]:
        """Masks with exactly the counts, and the weights that they keep.

        Raises:
            ValueError: no labels and no loss, data that can be read once only, or a loss that is
                not finite.
        """
        model.eval().requires_grad_(False)
        found = {
            name: _Searched(self, layers[name], kept[name], granularity, seed) for name in kept
        }
        for name in found:
            weight_at(model, name).parameter.requires_grad_(True)
        optimizer = torch.optim.Adam([f.scores for f in found.values()], lr=self.rate)
        total = self._epochs(batches) * _steps(batches, self.batch)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        last = math.nan
        with progress_bar("searching a subnetwork", total, progress=progress) as advance:
            for step, part in enumerate(self._parts(batches, seed)):
                share = min(1.0, 2 * step / total) if self.anneal else 1.0
                for name, own in found.items():
                    weight_at(model, name).put(own.masked(share))
                    weight_at(model, name).parameter.grad = None
                with torch.enable_grad():
                    given = to_device(part, next(iter(found.values())).scores.device)
                    value = loss_of(call(model, given), given, loss)
                    torch.autograd.backward(value)
                last = float(value.detach())
                if not math.isfinite(last):
                    raise ValueError(
                        f"The loss became {last} in step {step} of the search. Lower `rate`, or "
                        f"check the data."
                    )
                for name, own in found.items():
                    weight = weight_at(model, name)
                    own.learn(weight.matrix(weight.parameter.grad))
                optimizer.step()
                falling.step()
                advance(1)
        return {
            name: JointResult(
                mask=own.mask(own.kept),
                weight=own.masked(1.0).to(layers[name].weight.dtype),
                notes={"loss": last, "steps": total},
            )
            for name, own in found.items()
        }

    def _epochs(self, batches: Batches) -> int:
        if self.epochs is not None:
            return self.epochs
        return -(-LEAST // _steps(batches, self.batch))

    def _parts(self, batches: Batches, seed: int) -> Iterator[Any]:
        """Shuffled parts of every batch, epoch after epoch."""
        generator = generator_for(seed, "edge-popup")
        for _ in range(self._epochs(batches)):
            for batch in batches:
                yield from _shuffled(batch, self.batch, generator)


class _Searched:
    """One layer's fixed weights, and the scores that are learnt."""

    def __init__(
        self,
        rule: EdgePopup,
        layer: Layer,
        kept: Int[Tensor, " pools"],
        granularity: Granularity,
        seed: int,
    ) -> None:
        generator = generator_for(seed, layer.name)
        shape, place = tuple(layer.weight.shape), layer.weight.device
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        # Adam's 1e-8 is zero in half precision, and 0 / 0 where a unit is dead.
        precise = torch.promote_types(layer.weight.dtype, torch.float32)
        self.scores = ((2 * drawn - 1) * START).to(place, precise)
        self.weight = layer.weight.detach().clone()
        if rule.weights == "signed":
            signs = torch.randn(shape, generator=generator, dtype=torch.float64).sign()
            self.weight = (signs * math.sqrt(2 / shape[1])).to(self.weight)
        self.rule, self.layer, self.granularity, self.kept = rule, layer, granularity, kept

    def counts(self, share: float) -> Int[Tensor, " pools"]:
        """The counts when the density has gone this share of the way, geometrically."""
        size = pooled(self.granularity, self.layer, self.scores).shape[1]
        ends = self.kept.to(torch.float64).clamp_min(1)
        between = (size * (ends / size) ** share).round().to(self.kept)
        return self.kept if share >= 1 else torch.maximum(between, self.kept)

    def mask(self, counts: Int[Tensor, " pools"]) -> Bool[Tensor, "out in"]:
        """The highest scores of each pool, ties to the lower index."""
        ranked = self.scores.abs() if self.rule.rank == "absolute" else self.scores
        pools = pooled(self.granularity, self.layer, ranked)
        return unpooled(self.granularity, self.layer, top_k_mask(pools, counts))

    def masked(self, share: float) -> Float[Tensor, "out in"]:
        """The weights that the forward pass uses now."""
        counts = self.counts(share)
        self.used = self.weight
        if self.rule.weights == "signed":  # a kept row has the variance of a dense one
            density = max(int(counts.sum()), 1) / self.weight.numel()
            self.used = self.weight / math.sqrt(density)
        return self.used.masked_fill(~self.mask(counts), 0.0)

    def learn(self, grad: Float[Tensor, "out in"]) -> None:
        """Set the scores' gradient from that of the masked weights."""
        through = self.used.to(self.scores) * grad.to(self.scores)
        self.scores.grad = through * self.scores.sign() if self.rule.rank == "absolute" else through


def _steps(batches: Batches, size: int) -> int:
    """Optimizer steps of one epoch."""
    total = 0
    for batch in batches:
        samples = samples_of(batch)
        whole_batch = samples.mixed is not None or samples.size is None
        total += 1 if whole_batch else -(-samples.size // size)  # type: ignore[operator]
    return total


def _shuffled(batch: Any, size: int, generator: Generator) -> Iterator[Any]:
    """Parts of at most `size` samples in random order; a batch that cannot be cut comes whole."""
    samples = samples_of(batch)
    if samples.mixed is not None or samples.size is None:
        yield samples.batch
        return
    order = torch.randperm(samples.size, generator=generator).tolist()
    for start in range(0, samples.size, size):
        yield samples.take(order[start : start + size])
