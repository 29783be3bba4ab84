"""Whole parts of a network as the engine's steps see them: what blocks and experts share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.allocation import CostOf, Pools
from prunus.calibration.batches import Batches, call, size_of
from prunus.compensation import output_error
from prunus.cost import Cost, anatomy, smaller_cost
from prunus.engine.edges import drawn
from prunus.engine.job import Job, State
from prunus.engine.unit import Choices, Fit, Kept, Layers, Picked
from prunus.hints import Batch
from prunus.layer import Layer
from prunus.modes import evaluating
from prunus.nodes import BlockView, ExpertView
from prunus.recipe import Recipe
from prunus.weights import weights_of

__all__ = ["Parts", "WholeUnit", "batches_of", "settled_without"]


@runtime_checkable
class Parts(Protocol):
    """Parts of one kind: what a network has of them, what they are worth, what goes with them.

    Attributes:
        shapes: (pools, units) of every key: a chain of blocks, a layer of experts.
        refused: {part: reason} of those that stay.
        homes: the modules of all parts that may go.
        what: their name in messages.
        cost: of any plan.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]: ...

    @property
    def refused(self) -> Mapping[str, str]: ...

    @property
    def homes(self) -> tuple[str, ...]: ...

    @property
    def what(self) -> str: ...

    @property
    def cost(self) -> CostOf: ...

    def view(self, key: str) -> BlockView | ExpertView:
        """What scores and selections see of a key."""
        ...

    def scores(self, key: str) -> Tensor | None:
        """The recipe's number of every part of a key."""
        ...

    def gone(self, key: str, masks: Mapping[str, Tensor]) -> Bool[Tensor, " parts"] | None:
        """What earlier steps' masks have emptied, or None."""
        ...

    def masks(
        self, model: nn.Module, key: str, stays: Bool[Tensor, " parts"]
    ) -> dict[str, Bool[Tensor, "..."]]:
        """What is left of every parameter that a choice changes."""
        ...

    def level(self, kept: Kept) -> Kept:
        """The counts of a plan, made alike where they must be; a ValueError where too few."""
        ...

    def changed(self, keys: Collection[str]) -> tuple[str, ...]:
        """The parameters that choices of these keys change."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class WholeUnit:
    """Whole parts of a network; a step chooses all at once, by what they do and not by layers.

    Attributes:
        job: what is pruned.
        recipe: the method of this step.
        work: the network as it is.
        parts: of one kind.
        before: masks of earlier steps.
    """

    job: Job
    recipe: Recipe
    work: nn.Module
    parts: Parts
    before: Mapping[str, Tensor]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that choices change, of those that a view knows."""
        return self.needs(self.parts.shapes)

    @property
    def refused(self) -> Mapping[str, str]:
        """{part or layer: reason} of those that stay."""
        known = tuple(f"{name}." for name in (*self.parts.homes, *self.parts.refused))
        why = f"it lies in none of the {self.parts.what} that may go, which alone are units"
        others = [name for name in self.job.names if not name.startswith(known)]
        return {**dict.fromkeys(others, why), **self.parts.refused}

    def among(self, known: Collection[str]) -> "WholeUnit":
        """Itself: a part is chosen by what it does, not by statistics of its layers."""
        del known
        return self

    def after(
        self, model: nn.Module, masks: Mapping[str, Tensor], classes: Mapping[str, Tensor]
    ) -> "WholeUnit":
        """Where what these masks have emptied is gone."""
        del model, classes
        return replace(self, before=masks)

    def pools(self, layers: Layers, keys: Collection[str] | None = None) -> Pools:
        """The recipe's scores; parts that an earlier step removed rank below all others.

        Raises:
            ValueError: scores of another number, or not finite; the key is named.
        """
        del layers
        found = {}
        for key in self.parts.shapes if keys is None else keys:
            pools, units = self.parts.shapes[key]
            scores, what = self.parts.scores(key), f"{self.parts.what} of {key!r}"
            if scores is None or scores.shape != (pools * units,):
                raise ValueError(
                    f"{self.recipe.score!r} must give {pools * units} numbers for the {what}, "
                    f"got {None if scores is None else tuple(scores.shape)}."
                )
            if not bool(torch.isfinite(scores).all()):
                raise ValueError(
                    f"{self.recipe.score!r} gave NaN or infinite numbers for the {what}. Check "
                    f"the network's outputs on the data."
                )
            gone = self.parts.gone(key, self.before)
            if gone is not None:
                scores = scores.masked_fill(gone.to(scores.device), -torch.inf)
            found[key] = scores.view(pools, units)
        return found

    def blank(self, layers: Layers) -> Pools:
        """Pools of the right sizes."""
        del layers
        return {key: torch.zeros(shape) for key, shape in self.parts.shapes.items()}

    def left(self, layers: Layers) -> Kept:
        """Parts that earlier steps' masks have not emptied."""
        del layers
        gone = {key: self.parts.gone(key, self.before) for key in self.parts.shapes}
        return {
            key: (~parts).view(self.parts.shapes[key]).sum(1).cpu()
            for key, parts in gone.items()
            if parts is not None
        }

    def cost(self, layers: Layers) -> CostOf:
        """The cost of any plan."""
        del layers
        return self.parts.cost

    def level(self, kept: Kept) -> Kept:
        """As the parts must be."""
        return self.parts.level(kept)

    @property
    def cost_before(self) -> Cost:
        """Of the dense network."""
        return replace(smaller_cost(self.job.sizes, self.job.sizes.shapes, ()), density=1.0)

    @property
    def cut(self) -> None:
        """No group of channels."""
        return

    def due(self, names: Sequence[str]) -> tuple[str, ...]:
        """All at once."""
        del names
        return tuple(self.parts.shapes)

    def needs(self, keys: Collection[str]) -> tuple[str, ...]:
        """The layers that choices of these keys change, of those that a view knows."""
        paths = {weight.path: name for name, weight in weights_of(self.work).items()}
        return tuple(dict.fromkeys(paths[p] for p in self.parts.changed(keys) if p in paths))

    def complete(self, name: str, decided: Collection[str]) -> bool:
        """True where all are decided."""
        del name
        return set(self.parts.shapes) <= set(decided)

    def choose(
        self,
        key: str,
        layers: Layers,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        remembered: bool,
    ) -> Picked:
        """The parts that stay."""
        del layers, remembered
        return drawn(self.recipe.selection, scores, kept, self.parts.view(key), self.job.seed)

    def masks(self, model: nn.Module, key: str, choice: Picked) -> dict[str, Bool[Tensor, "..."]]:
        """All or nothing of what belongs to each part."""
        return self.parts.masks(model, key, choice.mask.flatten().cpu())

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


def batches_of(job: Job, state: State, what: str) -> Batches:
    """The data by which whole parts are chosen, all at once.

    Raises:
        ValueError: no data, scopes of layers, or a gap budget, which plans layers.
    """
    if job.batches is None:
        raise ValueError(
            f"Scores of {what} read the network's outputs on data, which a finished Calibration "
            f"does not hold. Pass batches as data."
        )
    budget = state.target.budget
    if job.blocks is not None or (budget is not None and budget.gap is not None):
        given = f"blocks={job.blocks!r}" if job.blocks is not None else "a gap budget"
        raise ValueError(
            f"{job.recipe.granularity!r} chooses all {what} at once by the network's outputs, "
            f"which {given} does not. Leave it out, or give a density."
        )
    return job.batches


def settled_without(job: Job, small: nn.Module, example: Batch, entries: int) -> Cost:
    """The cost of the network without its parts, counted on it.

    Args:
        job: what was pruned.
        small: the network without them.
        example: one batch, on its device.
        entries: of all parameters that were up for going.
    """

    def run() -> int:
        with evaluating(small), torch.no_grad():
            call(small, example)
        return size_of(example) or 1

    own = anatomy(small, run)
    cost = smaller_cost(own, own.shapes, ())
    total = sum(torch.Size(job.sizes.shapes[n]).numel() for n in job.sizes.parameters)
    lost = total - cost.parameters
    return replace(
        cost,
        density=(entries - lost) / entries if entries else 1.0,
        model_density=cost.parameters / total,
    )
