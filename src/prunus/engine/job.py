"""What one call of `prune` was given and knows from the start, and what it has found so far."""

from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from prunus.budget import Plan
from prunus.calibration import Calibration
from prunus.calibration.batches import Batches, first_of, to_device
from prunus.calibration.select import matching, prunable
from prunus.check import globs
from prunus.cost import Anatomy, Cost
from prunus.coupling import Coupling, Group, couple
from prunus.engine.first_run import first_run
from prunus.engine.shared import unfit
from prunus.engine.tables import beside, tables_asked
from prunus.engine.target import Target
from prunus.hints import Batch, Data, Loss
from prunus.joint import JointResult, is_network
from prunus.layer import Layer
from prunus.parts import NODES
from prunus.recipe import Recipe
from prunus.result import LayerResult
from prunus.rows import RowSet
from prunus.selection import Choice
from prunus.weights import Weight, weight_at, weights_of

__all__ = ["Job", "State", "job_of"]

Memo = MutableMapping[Hashable, Choice | JointResult]


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """What does not change while one network is pruned.

    Attributes:
        dense: the network as it came, on `device`.
        recipe: the method.
        name: its name.
        names: the selected layers.
        weights: of the dense network, by layer; all that a view knows.
        places: {layer: place in order of execution}.
        sizes: of the network's parts.
        not_pruned: {name: reason} of what is no layer, or not selected.
        calibration: statistics that were given instead of data, or None.
        batches: the data, or None.
        example: the first samples, or None.
        verifying: samples set apart, on which a gap plan is verified, or None.
        loss: the caller's.
        seed: of all random draws.
        device: where statistics and masks are computed.
        progress: show bars.
        memo: choices remembered over several calls, or None.
        blocks: scopes asked for: None, "auto" or a glob.
        keep: folder for the inputs that are kept; None keeps them in memory.
        measure: layer errors that the recipe's own statistics do not give.
        tables: embeddings that `layers` names, whose columns may go with their stream, and
            parameters without a layer, whose rows and columns may.
        asked: whether `layers` or `exclude` was given.
        found: which channels go together, where the first run has told.
    """

    dense: nn.Module
    recipe: Recipe
    name: str
    names: tuple[str, ...]
    weights: Mapping[str, Weight]
    places: Mapping[str, int]
    sizes: Anatomy
    not_pruned: Mapping[str, str]
    calibration: Calibration | None
    batches: Batches | None
    example: Batch
    verifying: list[Batch] | None
    loss: Loss | None
    seed: int
    device: torch.device
    progress: bool | None
    memo: Memo | None
    blocks: str | None
    keep: Path | None
    measure: bool = True
    tables: tuple[str, ...] = ()
    asked: bool = False
    found: Coupling | None = None

    def position(self, name: str) -> int:
        """The place of a layer in order of execution; those that the example skips come last."""
        return self.places.get(name, len(self.places))

    @cached_property
    def coupling(self) -> Coupling:
        """Which channels of the network go together; traced once."""
        heads = self.recipe.granularity.heads
        if self.found is not None:
            return self.found
        if self.calibration is not None and heads == "kv":
            return self.calibration.coupling(self.dense)
        return couple(self.dense, to_device(first_of(self.example, 2), self.device), heads)


@dataclass(frozen=True, eq=False, kw_only=True)
class State:
    """What the steps have found so far.

    Attributes:
        target: what is asked for; a gap budget becomes a plan.
        planner: the recipe, with the error curves where its allocation measures them.
        masks: True where an entry is kept, for every parameter that has zeros.
        classes: the kept channel classes by group.
        results: what the last step did to each layer.
        not_pruned: {name: reason}.
        plan: of the last step.
        cost_before: of the dense network.
        groups: of channels that could lose classes; None for single weights.
        notes: what the reader should know.
        steps: how many have pruned.
        fingerprint: of the data, or None.
        rows: which samples these were, or None.
        aims: the dense network's layers, where every round aims at their outputs.
        waits: a trial of what can be cut may wait for the comparison of what comes out.
    """

    target: Target
    planner: Recipe
    not_pruned: Mapping[str, str]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    classes: Mapping[str, Bool[Tensor, " classes"]] = field(default_factory=dict)
    results: Mapping[str, LayerResult] = field(default_factory=dict)
    plan: Plan | None = None
    cost_before: Cost | None = None
    groups: Sequence[Group] | None = None
    notes: tuple[str, ...] = ()
    steps: int = 0
    fingerprint: str | None = None
    rows: RowSet | None = None
    aims: Mapping[str, Layer] | None = None
    waits: bool = False

    def noted(self, *notes: str) -> "State":
        """With further notes, each said once."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))

    def left(self, reasons: Mapping[str, str]) -> "State":
        """With further layers that are not pruned."""
        return replace(self, not_pruned={**self.not_pruned, **reasons})


def job_of(
    dense: nn.Module,
    recipe: Recipe,
    name: str,
    source: Data | None,
    *,
    layers: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    verifying: list[Batch] | None,
    loss: Loss | None,
    seed: int,
    device: torch.device,
    progress: bool | None,
    memo: Memo | None,
    blocks: str | None,
    keep: Path | None,
    measure: bool = True,
) -> tuple[Job, tuple[str, ...]]:
    """The checked job, and what the reader should know of it.

    Raises:
        ValueError: no such layer, NaN or infinite weights, a calibration of another model, or one
            where the recipe reads the data again.
    """
    layers, exclude = globs("layers", layers), globs("exclude", exclude)
    weights = weights_of(dense, None if recipe.units == NODES else layers)
    modules, refused = prunable(dense, asked=layers is not None, known=weights)
    wide = ("*",) if recipe.basis.widens and layers is None else layers or ()
    tables = tables_asked(dense, weights, wide, exclude or ()) if recipe.units == NODES else ()
    names = matching(modules, beside(layers, tables), exclude, refused)
    for key in modules:
        modules[key].layer()  # NaN or infinite weights are named before any work
    calibration = source if isinstance(source, Calibration) else None
    batches = Batches(source) if source is not None and calibration is None else None
    example = None
    if calibration is not None:
        if recipe.inputs == "pruned":
            raise ValueError(
                "A recipe with inputs='pruned' reads the data again for every layer, which a "
                "finished Calibration cannot. Pass batches as data."
            )
        if blocks is not None:
            raise ValueError(
                "`blocks` collects statistics of one block at a time, and a Calibration holds "
                "those of all. Pass batches as data, or leave `blocks` out."
            )
        if is_network(recipe.selection):
            raise ValueError(
                f"{recipe.selection!r} searches on the batches themselves, which a finished "
                f"Calibration does not hold. Pass batches as data."
            )
        example = calibration.example
        _same_weights(dense, calibration)
    elif batches is not None:
        example = first_of(batches.peek(), 8)
    if blocks is not None and batches is None:
        raise ValueError(
            "`blocks` says in which order data are read, and there are none. Pass data=."
        )
    notes: tuple[str, ...] = ()
    if any(module.training for module in dense.modules()):
        notes = (
            "the model came in training mode; statistics were collected in evaluation mode and "
            "every module's mode was restored",
        )

    known = calibration is not None and recipe.granularity.heads == "kv"
    sizes, coupling = first_run(dense, recipe, example, device, known=known, weights=weights)
    names, shared = unfit(recipe, dense, names, to_device(example, device))
    job = Job(
        dense=dense,
        recipe=recipe,
        name=name,
        names=tuple(names),
        weights=weights,
        places={key: i for i, key in enumerate(sizes.order or modules)},
        sizes=sizes,
        not_pruned={
            **refused,
            **{n: shared.get(n, "not selected") for n in modules if n not in names},
        },
        calibration=calibration,
        batches=batches,
        example=example,
        verifying=verifying,
        loss=loss,
        seed=seed,
        device=device,
        progress=progress,
        memo=memo,
        blocks=blocks,
        keep=keep,
        measure=measure,
        tables=tables,
        asked=layers is not None or exclude is not None,
        found=coupling,
    )
    return job, notes


def _same_weights(model: nn.Module, calibration: Calibration) -> None:
    for name, layer in calibration.items():
        try:
            own = weight_at(model, name).layer()
        except ValueError:
            raise ValueError(
                f"The calibration has layer {name!r}, which the model lacks."
            ) from None
        for part in ("weight", "bias"):
            if not _equal(getattr(own, part), getattr(layer, part)):
                shown = "weights" if part == "weight" else "biases"
                raise ValueError(
                    f"Layer {name!r} has other {shown} than when it was calibrated. Calibrate "
                    f"the model again."
                )


def _equal(own: Tensor | None, stored: Tensor | None) -> bool:
    if own is None or stored is None:
        return own is stored
    return own.shape == stored.shape and torch.equal(own.cpu(), stored.cpu().to(own.dtype))
