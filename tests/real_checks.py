"""What is claimed of a network as people have it, and held against it: units, cuts, reasons."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from coupling_checks import few_of, moved
from prunus import Recipe
from prunus.ambient import quiet
from prunus.calibration.batches import call
from prunus.coupling import couple
from prunus.export.check import leaves
from prunus.granularity import Node
from prunus.inputs import arguments
from prunus.surgery.configs import UnsaidWidths

__all__ = ["Judged", "compared", "judge", "outputs"]

EXACT = 2e-5  # of the largest output, in single precision, over two blocks


@dataclass
class Judged:
    """What was found in one network.

    Attributes:
        groups: {group: number of classes}.
        probed: classes that were zeroed and redrawn.
        wrong: {group: largest change of the outputs} of exact ones that moved them.
        removed: {group: classes that the compact network lacks}.
        change: largest difference of compact and masked outputs, over the largest, by batch.
        parameters: before and after.
        reasons: {layer: why it stays whole}.
        refusal: why nothing was pruned, or nothing.
    """

    groups: dict[str, int]
    probed: int = 0
    wrong: dict[str, float] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    change: tuple[float, ...] = ()
    parameters: tuple[int, int] = (0, 0)
    reasons: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""
    pruned: Any = field(default=None, repr=False)


def judge(model: nn.Module, examples: tuple[Any, ...], *, density: float = 0.6) -> Judged:
    """Couple, probe every exact group, prune nodes, cut them out, and compare on all batches."""
    coupling = couple(model, examples[0])
    found = Judged({group.name: group.size for group in coupling.groups})
    args, keywords = arguments(examples[0])
    scale = max(float(t.abs().max()) for t in outputs(model, examples[0]))
    for group in coupling.groups:
        if not group.exact:
            continue
        for members in few_of(group):
            found.probed += 1
            change = moved(model, members, *args, **keywords) / scale
            if change > EXACT:
                found.wrong[group.name] = max(change, found.wrong.get(group.name, 0.0))
    recipe = Recipe(granularity=Node())
    try:
        pruned = prunus.prune(model, recipe, density, data=examples[0])
    except ValueError:
        try:  # recurrent weights are pruned where they are asked for
            pruned = prunus.prune(model, recipe, density, data=examples[0], layers="*")
        except ValueError as refusal:
            found.refusal = str(refusal)
            found.reasons = coupling.refused
            return found
    with quiet(UnsaidWidths):  # what `save_hf` tells
        small = pruned.compact(examples[0])
    found.removed = {
        name: found.groups[name] - count
        for name, count in pruned.plan.kept.items()
        if isinstance(count, int) and name in found.groups and count < found.groups[name]
    }
    found.change = tuple(compared(pruned.model, small, batch) for batch in examples)
    found.parameters = (size(model), size(small))
    found.reasons = pruned.not_pruned
    found.pruned = pruned
    return found


def outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    """The floating outputs."""
    with torch.no_grad():
        return leaves(call(model, batch))


def compared(one: nn.Module, other: nn.Module, batch: Any) -> float:
    """The largest difference of two networks' outputs, over the largest output."""
    pairs = list(pair(outputs(one, batch), outputs(other, batch)))
    scale = max(float(a.abs().max()) for a, _ in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / scale


def pair(one: list[Tensor], other: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs of one shape; caches of cut heads have others, and are no outputs to compare."""
    for a, b in zip(one, other, strict=True):
        if a.shape == b.shape and a.numel():
            yield a, b


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
