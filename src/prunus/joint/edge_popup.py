"""Edge-popup: a subnetwork of weights that are never trained, found by training scores."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from prunus.calibration.batches import Batches, call, to_device
from prunus.calibration.forward import loss_of
from prunus.check import positive, unknown, whole
from prunus.granularity import Granularity, pooled, unpooled
from prunus.hints import Loss
from prunus.inputs import samples_of
from prunus.joint.norms import batch_norms, parts_of, renewed
from prunus.joint.protocol import JointResult, NetworkJoint
from prunus.layer import Layer
from prunus.parts import LATER, Composition, shown
from prunus.progress import progress_bar
from prunus.rng import generator_for
from prunus.selection import top_k_mask
from prunus.weights import weight_at

__all__ = ["EdgePopup"]

LEAST = 400  # optimizer steps, where the number of epochs is left open
START = 0.1  # scores start uniform in ±START in every layer: on one scale
WEIGHTS = ("signed", "unsigned", "normal", "uniform", "kept")
RANKS = ("absolute", "signed")
SCALES = ("density", "none", "published")
STARTS = ("one", "fan-in")
OPTIMIZERS = ("adam", "sgd")
NORMS = ("kept", "batch")
MOMENTUM = 0.9


@dataclass(frozen=True)
class EdgePopup(NetworkJoint):
    """Masks of fixed weights, by gradient descent on one score per weight.

    Forward, a layer uses W ∘ m with m the highest |s| of each pool; backward, m is taken as |s|:
    ∂L/∂s = sign(s) · W · ∂L/∂(W ∘ m), also for weights that are masked now and may so come back.
    Adam, its rate falling as a cosine to 0; the density falls geometrically from 1 to its end over
    the first half. Dropout is off. Biases, and the weights of norms, stay as they are.

    Departures from the paper: Adam for SGD, the falling density, and scores that start on one scale
    in all layers. `EdgePopup.published()` takes them back.

    Attributes:
        weights: what is drawn, with standard deviation σ = √(2 / fan-in): "signed" ±σ, "unsigned"
            σ, "normal", or "uniform"; "kept" searches among the weights that are there.
        epochs: passes over the data; the fewest with 400 steps where None.
        rate: of the optimizer, at the start; it falls as a cosine to 0.
        batch: samples of a step, drawn without replacement from each batch of the data.
        rank: "absolute" ranks |s|, as the authors' code; "signed" ranks s.
        anneal: False keeps the density at its end from the first step, as published.
        scale: drawn weights are divided by √density of their layer, so that a kept row has the
            variance of a dense one; "none" leaves them; "published" divides by √(1 − density), as
            the authors' code does, where its rate is the kept share.
        start: scores start uniform in ±0.1 in every layer ("one"), or in ±1 / √fan-in as published.
        optimizer: "adam", or "sgd" with momentum 0.9.
        decay: weight decay on the scores.
        across: rank the scores of all layers together: the plan's total is kept, and how the layers
            share it is the search's. Needs scores on one scale.
        norms: batch norms with "kept" have the statistics they came with, so that the search sees
            the network as it will be evaluated; those of a trained network say nothing of weights
            that are drawn. With "batch" they have those of each step's samples, and in the end the
            mean over one more pass with the final masks, which the pruned network keeps.

    References:
        Ramanujan, Wortsman, Kembhavi, Farhadi, Rastegari (2020), What's hidden in a randomly
        weighted neural network?
    """

    weights: Literal["signed", "unsigned", "normal", "uniform", "kept"] = "signed"
    epochs: int | None = None
    rate: float = 0.005
    batch: int = 128
    rank: Literal["absolute", "signed"] = "absolute"
    anneal: bool = True
    scale: Literal["density", "none", "published"] = field(
        default="density", metadata={LATER: True}
    )
    start: Literal["one", "fan-in"] = field(default="one", metadata={LATER: True})
    optimizer: Literal["adam", "sgd"] = field(default="adam", metadata={LATER: True})
    decay: float = field(default=0.0, metadata={LATER: True})
    across: bool = field(default=False, metadata={LATER: True})
    norms: Literal["kept", "batch"] = field(default="kept", metadata={LATER: True})
    statistics: ClassVar[tuple[str, ...]] = ()
    random: ClassVar[bool] = True
    __repr__ = shown

    def __post_init__(self) -> None:
        for name, known in (
            ("weights", WEIGHTS), ("rank", RANKS), ("scale", SCALES), ("start", STARTS),
            ("optimizer", OPTIMIZERS), ("norms", NORMS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise unknown(f"{name} of EdgePopup", str(getattr(self, name)), known)
        if self.across and self.start != "one":
            raise ValueError(
                f"`across` ranks the scores of all layers together, so `start` must be 'one', got "
                f"{self.start!r}: on other scales a layer loses all its weights."
            )
        positive("decay", self.decay, zero=True)
        if self.epochs is not None:
            whole("epochs", self.epochs, low=1)
        positive("rate", self.rate)
        whole("batch", self.batch, low=1)

    @staticmethod
    def published(epochs: int | None = None) -> "EdgePopup":
        """As in the paper's code for MNIST: SGD, its rate and decay, a fixed density, its scaling.

        Args:
            epochs: theirs are 14.
        """
        return EdgePopup(
            epochs=epochs, rate=0.1, batch=64, anneal=False, scale="published", start="fan-in",
            optimizer="sgd", decay=5e-4,
        )  # fmt: skip

    @property
    def refits(self) -> bool:
        """Where weights are drawn anew."""
        return self.weights != "kept"

    @property
    def moves(self) -> bool:
        """Where all layers are ranked together."""
        return self.across

    def beside(self, recipe: Composition) -> str | None:
        """Refuses what no such method stands beside, and new values for weights that are found."""
        if recipe.compensation.refits:
            return (
                f"{self!r} finds which weights do as they are, so `compensation` must be "
                f"NoCompensation(), got {recipe.compensation!r}."
            )
        if self.across and recipe.granularity.pools != "layer":
            return (
                f"{self!r} moves weights between layers, so `granularity` must be Edge(), got "
                f"{recipe.granularity!r}."
            )
        return NetworkJoint.beside(self, recipe)

    def __call__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        kept: Mapping[str, Int[Tensor, " pools"]],
        batches: Batches,
        *,
        loss: Loss | None,
        granularity: Granularity,
        seed: int,
        progress: bool | None,
    ) -> dict[str, JointResult]:
        """Masks with exactly the counts, and the weights that they keep.

        Raises:
            ValueError: no labels and no loss, data that can be read once only, a loss that is not
                finite, or one sample alone beside norms="batch".
        """
        model.eval().requires_grad_(False)
        norms = batch_norms(model) if self.norms == "batch" else []
        for norm in norms:
            norm.train()
        found = {
            name: _Searched(self, layers[name], kept[name], granularity, seed) for name in kept
        }
        for name in found:
            weight_at(model, name).parameter.requires_grad_(True)
        optimizer = self._optimizer([own.scores for own in found.values()])
        each = self._steps(batches, norms=bool(norms))
        epochs = -(-LEAST // each) if self.epochs is None else self.epochs
        total = epochs * each
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        last = math.nan
        with progress_bar("searching a subnetwork", total, progress=progress) as advance:
            for step, part in enumerate(self._parts(batches, epochs, seed, norms=bool(norms))):
                share = min(1.0, 2 * step / total) if self.anneal else 1.0
                masks = self._masks(found, share)
                for name, own in found.items():
                    weight_at(model, name).put(own.masked(masks[name]))
                    weight_at(model, name).parameter.grad = None
                with torch.enable_grad():
                    given = to_device(part, next(iter(found.values())).scores.device)
                    value = loss_of(call(model, given, step), given, loss)
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
        masks = self._masks(found, 1.0)
        results = {
            name: JointResult(
                mask=masks[name],
                weight=own.masked(masks[name]).to(layers[name].weight.dtype),
                notes={"loss": last, "steps": total},
            )
            for name, own in found.items()
        }
        if norms:
            for name, result in results.items():
                weight_at(model, name).put(result.weight)
            with renewed(norms), torch.no_grad():
                for i, part in enumerate(self._parts(batches, 1, seed, norms=True)):
                    call(model, to_device(part, next(iter(found.values())).scores.device), i)
        return results

    def _optimizer(self, scores: list[Tensor]) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(scores, lr=self.rate, weight_decay=self.decay)
        return torch.optim.SGD(scores, lr=self.rate, momentum=MOMENTUM, weight_decay=self.decay)

    def _masks(
        self, found: Mapping[str, "_Searched"], share: float
    ) -> dict[str, Bool[Tensor, "out in"]]:
        """Every layer's mask when the density has gone this share of the way."""
        counts = {name: own.counts(share) for name, own in found.items()}
        if not self.across:
            return {name: own.mask(counts[name]) for name, own in found.items()}
        ranked = {name: own.ranked() for name, own in found.items()}
        place = next(iter(ranked.values())).device
        together = torch.cat([r.flatten().to(place) for r in ranked.values()])[None]
        total = torch.stack([c.sum() for c in counts.values()]).sum()[None]
        parts = torch.split(top_k_mask(together, total)[0], [r.numel() for r in ranked.values()])
        return {
            name: part.view(r.shape).to(r.device)
            for (name, r), part in zip(ranked.items(), parts, strict=True)
        }

    def _steps(self, batches: Batches, *, norms: bool) -> int:
        """Optimizer steps of one epoch."""
        total = 0
        for batch in batches:
            samples = samples_of(batch)
            if samples.mixed is not None or samples.size is None:
                total += 1  # it runs whole
            else:
                total += len(parts_of(samples.size, self.batch, norms=norms))
        return total

    def _parts(self, batches: Batches, epochs: int, seed: int, *, norms: bool) -> Iterator[Any]:
        """Shuffled parts of every batch, epoch after epoch; one that cannot be cut comes whole."""
        generator = generator_for(seed, "edge-popup")
        for _ in range(epochs):
            for batch in batches:
                samples = samples_of(batch)
                if samples.mixed is not None or samples.size is None:
                    yield samples.batch
                    continue
                order = torch.randperm(samples.size, generator=generator).tolist()
                for first, end in parts_of(samples.size, self.batch, norms=norms):
                    yield samples.take(order[first:end])


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
        reach = START if rule.start == "one" else 1 / math.sqrt(shape[1])
        self.scores = ((2 * drawn - 1) * reach).to(place, precise)
        self.weight = layer.weight.detach().clone()
        if rule.weights != "kept":
            unit = _unit(rule.weights, shape, generator)
            self.weight = (unit * math.sqrt(2 / shape[1])).to(self.weight)
        self.rule, self.layer, self.granularity, self.kept = rule, layer, granularity, kept

    def counts(self, share: float) -> Int[Tensor, " pools"]:
        """The counts when the density has gone this share of the way, geometrically."""
        size = pooled(self.granularity, self.layer, self.scores).shape[1]
        ends = self.kept.to(torch.float64).clamp_min(1)
        between = (size * (ends / size) ** share).round().to(self.kept)
        return self.kept if share >= 1 else torch.maximum(between, self.kept)

    def ranked(self) -> Float[Tensor, "out in"]:
        """What the highest of are kept."""
        return self.scores.abs() if self.rule.rank == "absolute" else self.scores

    def mask(self, counts: Int[Tensor, " pools"]) -> Bool[Tensor, "out in"]:
        """The highest scores of each pool, ties to the lower index."""
        pools = pooled(self.granularity, self.layer, self.ranked())
        return unpooled(self.granularity, self.layer, top_k_mask(pools, counts))

    def masked(self, mask: Bool[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The weights that the forward pass uses under this mask."""
        self.used = self.weight
        size = self.weight.numel()
        if self.rule.weights != "kept" and self.rule.scale == "density":
            # A kept row has the variance of a dense one.
            self.used = self.weight / math.sqrt(max(int(mask.sum()), 1) / size)
        elif self.rule.weights != "kept" and self.rule.scale == "published":
            self.used = self.weight / math.sqrt(max(size - int(self.kept.sum()), 1) / size)
        return self.used.masked_fill(~mask, 0.0)

    def learn(self, grad: Float[Tensor, "out in"]) -> None:
        """Set the scores' gradient from that of the masked weights."""
        through = self.used.to(self.scores) * grad.to(self.scores)
        self.scores.grad = through * self.scores.sign() if self.rule.rank == "absolute" else through


def _unit(kind: str, shape: tuple[int, ...], generator: Generator) -> Float[Tensor, "out in"]:
    """Weights of standard deviation 1 (constant ones: of size 1)."""
    if kind == "unsigned":
        return torch.ones(shape, dtype=torch.float64)
    if kind == "uniform":
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (2 * drawn - 1) * math.sqrt(3)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return drawn if kind == "normal" else drawn.sign()
