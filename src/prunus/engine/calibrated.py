"""Statistics that several prunings of one model share, and which prunings can share them."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from prunus.budget import Budget, Density
from prunus.calibration import Calibration, calibrate
from prunus.calibration.batches import Batches
from prunus.calibration.select import to_calibrate
from prunus.calibration.statistics import combined
from prunus.hints import Loss
from prunus.joint import is_network
from prunus.recipe import Recipe
from prunus.schedules import steps_of

__all__ = ["data_for", "shared_calibration", "shares"]


def shared_calibration(
    model: nn.Module,
    methods: Mapping[str, Recipe],
    data: Calibration | Batches,
    loss: Loss | None,
    device: str | torch.device | None,
    progress: bool | None,
    layers: str | Sequence[str] | None = None,
) -> Calibration:
    """What all recipes read of the data, collected once; a given calibration as it is.

    Beside the layers that `layers` names, all that are pruned unasked are: what is pruned of a
    group of channels shows in the inputs of other layers.
    """
    if isinstance(data, Calibration):
        return data
    wanted = combined(["gram", *(s for m in methods.values() for s in m.statistics)])
    return calibrate(
        model, data, wanted, layers=to_calibrate(model, layers), loss=loss, device=device,
        progress=progress,
    )  # fmt: skip


def shares(method: Recipe, density: Density) -> bool:
    """Whether finished statistics serve a pruning, which else reads the batches themselves."""
    several = len(steps_of(method.schedule)) > 1
    planned = method.allocation.measures_curves or (
        isinstance(density, Budget) and density.gap is not None
    )
    reads = method.inputs == "pruned" or is_network(method.selection)
    reads = reads or method.granularity.needs_batches or method.basis.needs_batches
    return not (reads or several or planned)


def data_for(
    method: Recipe, density: Density, shared: Calibration, data: Calibration | Batches
) -> Calibration | Batches:
    """The shared statistics, or the batches where a recipe or a plan reads them itself."""
    return shared if shares(method, density) else data
