"""Residual blocks, or halves of them, as the engine's steps see them."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.allocation import Pools
from prunus.calibration.batches import call, parts, size_of, to_device
from prunus.compensation import output_error
from prunus.cost import Cost, anatomy, smaller_cost
from prunus.cost.anatomy import Anatomy
from prunus.engine.edges import drawn
from prunus.engine.job import Job
from prunus.engine.unit import Choices, Fit, Kept, Layers, Picked
from prunus.layer import Layer
from prunus.modes import copied, evaluating
from prunus.nodes import BlockView
from prunus.progress import progress_bar
from prunus.recipe import Recipe
from prunus.rng import generator_for
from prunus.scopes.trees import tensors_of
from prunus.surgery.depth import Skippable, gone_parts, skippable, without, zeros_of
from prunus.weights import weights_of

__all__ = ["BlockCost", "BlockUnit", "block_unit", "settled_blocks"]

LIMIT = 2**30  # bytes of dense outputs that are kept


@dataclass(frozen=True, eq=False)
class BlockCost:
    """What a network costs with so many blocks of each chain, each counted as their mean.

    Multiply-adds between computed values are left out of a plan; the compact network is counted.

    Attributes:
        sizes: of the network.
        chains: the blocks, or halves, that may go.
        refused: {block: reason} of the others.
    """

    sizes: Anatomy
    chains: Mapping[str, Sequence[Skippable]]
    refused: Mapping[str, str]
    nodes: bool = True
    multiple_of: int = 1
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def members(self) -> Mapping[str, tuple[str, ...]]:
        """The blocks of each chain."""
        return {name: tuple(b.name for b in blocks) for name, blocks in self.chains.items()}

    def entries(self, parts: Sequence[Skippable]) -> dict[str, int]:
        """{parameter: its entries} of what goes with some parts."""
        homes = [f"{home}." for part in parts for home in (part.owners or (part.name,))]
        return {
            name: math.prod(self.sizes.shapes[name])
            for name in self.sizes.parameters
            if any(name.startswith(home) for home in homes)
        }

    def __call__(self, kept: Kept) -> Cost:
        """The cost of a plan."""
        whole = smaller_cost(self.sizes, self.sizes.shapes, ())
        uses = {} if self.sizes.operations is None else self.sizes.operations.uses
        every, gone, saved = 0, 0.0, 0.0
        for name, blocks in self.chains.items():
            own = self.entries(blocks)
            share = 1 - int(kept[name].sum()) / len(blocks)
            every += sum(own.values())
            gone += share * sum(own.values())
            saved += share * sum(n * uses.get(p, 0.0) for p, n in own.items())
        width = whole.bytes / max(1, whole.parameters)
        return Cost(
            density=1 - gone / every if every else 1.0,
            model_density=1 - gone / max(1, whole.parameters),
            parameters=round(whole.parameters - gone),
            macs=None if whole.macs is None else round(whole.macs - saved),
            bytes=round(whole.bytes - gone * width),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockUnit:
    """The blocks of some chains; a pool's key is its chain's name.

    Attributes:
        job: what is pruned.
        recipe: the method of this step.
        work: the network as it is.
        chains: what may go, by chain.
        refused: {block: reason} of the others.
        going: how many blocks of each chain go at most.
    """

    job: Job
    recipe: Recipe
    work: nn.Module
    chains: Mapping[str, tuple[Skippable, ...]]
    refused: Mapping[str, str]
    going: Mapping[str, int]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that write to the streams; all of the blocks', where no view knows these."""
        inside = [part.name for blocks in self.chains.values() for part in blocks]
        return self.needs(self.chains) or tuple(
            name for name in self.job.names if any(name.startswith(f"{b}.") for b in inside)
        )

    def among(self, known: Collection[str]) -> "BlockUnit":
        """Itself: a block is chosen by what it does, not by statistics of its layers."""
        del known
        return self

    def after(
        self, model: nn.Module, masks: Mapping[str, Tensor], classes: Mapping[str, Tensor]
    ) -> "BlockUnit":
        """Itself: one step chooses all."""
        del model, masks, classes
        return self

    def pools(self, layers: Layers, keys: Collection[str] | None = None) -> Pools:
        """The recipe's scores of every chain's blocks."""
        del layers
        found = {}
        for key in self.chains if keys is None else keys:
            scores = self.recipe.score.blocks(self._view(key))
            if scores is None or scores.shape != (len(self.chains[key]),):
                raise ValueError(
                    f"{self.recipe.score!r} must give {len(self.chains[key])} numbers for the "
                    f"blocks of {key!r}, got {None if scores is None else tuple(scores.shape)}."
                )
            if not bool(torch.isfinite(scores).all()):
                raise ValueError(
                    f"{self.recipe.score!r} gave NaN or infinite numbers for the blocks of "
                    f"{key!r}. Check the network's outputs on the data."
                )
            found[key] = scores[None]
        return found

    def blank(self, layers: Layers) -> Pools:
        """Pools of the right sizes."""
        del layers
        return {key: torch.zeros(1, len(blocks)) for key, blocks in self.chains.items()}

    def cost(self, layers: Layers) -> BlockCost:
        """The cost of any plan."""
        del layers
        return BlockCost(self.job.sizes, self.chains, self.refused)

    def level(self, kept: Kept) -> Kept:
        """As they are."""
        return kept

    @property
    def cost_before(self) -> Cost:
        """Of the dense network."""
        return replace(smaller_cost(self.job.sizes, self.job.sizes.shapes, ()), density=1.0)

    @property
    def cut(self) -> None:
        """No group of channels."""
        return

    def due(self, names: Sequence[str]) -> tuple[str, ...]:
        """All chains at once."""
        del names
        return tuple(self.chains)

    def needs(self, keys: Collection[str]) -> tuple[str, ...]:
        """The layers that write to these chains' streams."""
        paths = {weight.path: name for name, weight in weights_of(self.work).items()}
        writers = [w for key in keys for part in self.chains[key] for w in part.writers]
        return tuple(dict.fromkeys(paths[w] for w in writers if w in paths))

    def complete(self, name: str, decided: Collection[str]) -> bool:
        """True where all chains are decided."""
        del name
        return set(self.chains) <= set(decided)

    def choose(
        self,
        key: str,
        layers: Layers,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        remembered: bool,
    ) -> Picked:
        """The blocks of a chain that stay."""
        del layers, remembered
        return drawn(self.recipe.selection, scores, kept, self._view(key), self.job.seed)

    def masks(self, model: nn.Module, key: str, choice: Picked) -> dict[str, Bool[Tensor, "..."]]:
        """All or nothing of what each block writes to the stream."""
        stays = choice.mask[0].tolist()
        found: dict[str, Tensor] = {}
        for part, kept in zip(self.chains[key], stays, strict=True):
            found |= {name: mask | kept for name, mask in zeros_of(model, [part]).items()}
        return found

    def fit(self, layer: Layer, mask: Bool[Tensor, "out in"], choices: Choices) -> Fit:
        """The layer as it is, or zeros."""
        del choices
        mask = mask.to(layer.weight.device)
        bias = layer.bias if layer.bias is None or bool(mask.any()) else layer.bias * 0
        return Fit(mask=mask, weight=layer.weight.masked_fill(~mask, 0.0), bias=bias)

    def measured(
        self, layer: Layer, fit: Fit, masks: Mapping[str, Tensor]
    ) -> tuple[Fit, float | None]:
        """The values as they are, and the layer's output error."""
        del masks
        return fit, output_error(layer, fit.weight, fit.bias)

    def classes(self, choices: Choices) -> dict[str, Bool[Tensor, " classes"]]:
        """None."""
        del choices
        return {}

    def _view(self, key: str) -> BlockView:
        blocks = self.chains[key]
        return BlockView(
            name=key,
            blocks=tuple(part.name for part in blocks),
            turned=partial(self._turned, blocks),
            gap=_Gaps(self, blocks),
            going=self.going[key],
            generator=generator_for(self.job.seed, key),
        )

    def _turned(self, blocks: Sequence[Skippable]) -> Float[Tensor, " blocks"]:
        total, tokens = torch.zeros(len(blocks), dtype=torch.float64), 0.0
        taken: dict[int, Tensor] = {}

        def before(i: int, module: nn.Module, args: Any, keywords: Any) -> None:
            taken[i] = tensors_of((args, keywords))[0].detach().clone()

        def after(i: int, module: nn.Module, args: Any, output: Any) -> None:
            x, y = taken.pop(i).double(), tensors_of(output)[0].detach().double()
            turn = 1 - torch.cosine_similarity(x, y, dim=-1)
            counts = _tokens(mask, turn)
            total[i] += float((turn * counts).sum())
            seen[i] = float(counts.sum())

        handles = []
        for i, block in enumerate(blocks):
            module = self.work.get_submodule(block.name)
            handles += [
                module.register_forward_pre_hook(partial(before, i), with_kwargs=True),
                module.register_forward_hook(partial(after, i)),
            ]
        try:
            for batch in self.batches():
                mask, seen = _mask_of(batch), dict[int, float]()
                with evaluating(self.work), torch.no_grad():
                    call(self.work, batch)
                tokens += max(seen.values(), default=0.0)
        finally:
            for handle in handles:
                handle.remove()
        return total / tokens

    def batches(self) -> Iterator[Any]:
        """The data in parts of bounded size, on the network's device."""
        assert self.job.batches is not None  # `block_unit` has asked for them
        for batch in self.job.batches:
            for part in parts(batch):
                yield to_device(part, self.job.device)


class _Gaps:
    """Mean gaps of the output without some blocks; dense outputs are kept while they are few."""

    def __init__(self, unit: BlockUnit, blocks: Sequence[Skippable]) -> None:
        self._unit, self._blocks = unit, blocks
        self._dense: list[Tensor] | None = None

    def __call__(self, gone: Sequence[int], kind: str) -> float:
        writers = [w for i in gone for w in self._blocks[i].writers]
        total, tokens = 0.0, 0.0
        with progress_bar(f"without {len(gone)} blocks", None, progress=self._unit.job.progress):
            for i, batch in enumerate(self._unit.batches()):
                dense = self._known(i, batch)
                with _zeroed(self._unit.work, writers):
                    other = _output(self._unit.work, batch)
                gap = _gap(dense, other, kind)
                counts = _tokens(_mask_of(batch), gap)
                total += float((gap * counts).sum())
                tokens += float(counts.sum())
        return total / tokens

    def _known(self, place: int, batch: Any) -> Tensor:
        if self._dense is None:
            self._dense = []
        if place < len(self._dense):
            return self._dense[place]
        found = _output(self._unit.work, batch)
        size = sum(t.numel() * t.element_size() for t in (*self._dense, found))
        if place == len(self._dense) and size <= LIMIT:
            self._dense.append(found)
        return found


def _gap(dense: Tensor, other: Tensor, kind: str) -> Tensor:
    """Per sample (and token): nats, or squared output units averaged over the last axis."""
    dense, other = dense.double(), other.double()
    if kind == "mse":
        return (dense - other).square().mean(-1)
    p, q = dense.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def _output(model: nn.Module, batch: Any) -> Tensor:
    with evaluating(model), torch.no_grad():
        output = call(model, batch)
    logits = getattr(output, "logits", None)
    found: Tensor = logits if isinstance(logits, Tensor) else tensors_of(output)[0]
    return found.detach().clone()


def _mask_of(batch: Any) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _tokens(mask: Tensor | None, values: Tensor) -> Tensor:
    """1 for each value that counts, 0 for padding."""
    if mask is not None and values.ndim >= 2 and values.shape[:2] == mask.shape:
        wide = mask.reshape(*mask.shape, *[1] * (values.ndim - 2))
        return (wide != 0).to(values.dtype).expand_as(values)
    return torch.ones_like(values)


@contextmanager
def _zeroed(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    known = dict(model.named_parameters())
    saved = {name: known[name].detach().clone() for name in names}
    try:
        with torch.no_grad():
            for name in names:
                known[name].zero_()
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                known[name].copy_(value)


def block_unit(job: Job, recipe: Recipe, work: nn.Module, small: Any, density: Any) -> BlockUnit:
    """The blocks that may go.

    Args:
        job: what is pruned.
        recipe: the method.
        work: the network as it is.
        small: a few samples, on its device.
        density: asked for as one number, which says how many go at most; else None.

    Raises:
        ValueError: no data, no blocks, or none that can go.
    """
    if job.batches is None:
        raise ValueError(
            "Scores of blocks read the network's outputs on data, which a finished Calibration "
            "does not hold. Pass batches as data."
        )
    part = recipe.granularity.part
    found, refused = skippable(job.dense, small, part)
    chosen = [p for p in found if any(n.startswith(f"{p.name}.") for n in job.names)]
    refused |= {p.name: "not selected" for p in found if p not in chosen}
    chains: dict[str, tuple[Skippable, ...]] = {}
    for block in chosen:
        chains[block.chain] = (*chains.get(block.chain, ()), block)
    if not chains:
        raise ValueError(
            "None of the selected layers lies in a block that can go. Check `layers` and `exclude`."
        )
    least = 0.0 if density is None else density
    return BlockUnit(
        job=job,
        recipe=recipe,
        work=work,
        chains=chains,
        refused=refused,
        going={n: math.ceil(len(own) * (1 - least)) for n, own in chains.items()},
    )


def settled_blocks(
    job: Job, work: nn.Module, masks: Mapping[str, Tensor]
) -> tuple[Cost, tuple[str, ...]]:
    """The cost of the network without its blocks, counted on it."""
    batch = to_device(job.example, job.device)
    part = job.recipe.granularity.part
    every = BlockCost(job.sizes, {}, {})
    gone = gone_parts(work, masks, part, batch)
    small = without(work, gone, part, batch) if gone else copied(work)

    def run() -> int:
        with evaluating(small), torch.no_grad():
            call(small, batch)
        return size_of(batch) or 1

    own = anatomy(small, run)
    cost = smaller_cost(own, own.shapes, ())
    total = sum(math.prod(job.sizes.shapes[n]) for n in job.sizes.parameters)
    blocks = sum(every.entries(skippable(job.dense, batch, part)[0]).values())
    lost = total - cost.parameters
    return replace(
        cost, density=1 - lost / blocks if blocks else 1.0, model_density=cost.parameters / total
    ), ()
