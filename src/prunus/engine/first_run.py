"""The network's first run, on the dense one: what it multiplies, and which channels go together."""

from collections.abc import Mapping

import torch
from torch import nn

from prunus.ambient import unless_interrupted
from prunus.calibration.batches import call, size_of, to_device
from prunus.cost import Anatomy, anatomy
from prunus.coupling import Coupling, coupling_of
from prunus.coupling.run import first_trace
from prunus.coupling.trace import LabelTrace
from prunus.hints import Batch
from prunus.modes import evaluating
from prunus.parts import NODES
from prunus.recipe import Recipe
from prunus.weights import Weight

__all__ = ["first_run"]


def first_run(
    dense: nn.Module,
    recipe: Recipe,
    example: Batch,
    device: torch.device,
    *,
    known: bool,
    weights: Mapping[str, Weight] | None = None,
) -> tuple[Anatomy, Coupling | None]:
    """The sizes of a network's parts, and its coupling where the run that counts tells both.

    Coupling takes two samples. Of an example of more, multiply-adds are an average over all.

    Args:
        dense: the network.
        recipe: what it is to be pruned by.
        example: one batch, or None where there are no data.
        device: where it runs.
        known: whether the coupling is known from elsewhere.
        weights: what `weights_of` says of it, where that was asked before.
    """
    if example is None:
        return anatomy(dense, known=weights), None
    batch = to_device(example, device)
    if recipe.units == NODES and not known and size_of(example) in (1, 2):
        try:
            return _both(dense, recipe, batch, weights)
        except Exception as error:  # whatever the model raises; a run by itself says it better
            unless_interrupted(error)

    def run() -> int:
        with evaluating(dense), torch.no_grad():
            call(dense, to_device(example, device))
        return size_of(example) or 1

    return anatomy(dense, run, known=weights), None


def _both(
    dense: nn.Module, recipe: Recipe, batch: Batch, weights: Mapping[str, Weight] | None
) -> tuple[Anatomy, Coupling]:
    heads = recipe.granularity.heads
    traces: list[LabelTrace] = []

    def run() -> int:
        traces.append(first_trace(dense, batch, heads))
        return 2  # a single sample is taken twice

    sizes = anatomy(dense, run, known=weights)
    return sizes, coupling_of(dense, batch, heads, traces[-1])  # the call may be made twice
