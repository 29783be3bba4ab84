"""One streaming pass over data that makes a `Calibration`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunus.ambient import plainly
from prunus.calibration.batches import Batches, first_of, to_device
from prunus.calibration.classes import read_raw
from prunus.calibration.collect import collect, guard_memory
from prunus.calibration.place import checked_device, device_of, placed
from prunus.calibration.reasons import listed
from prunus.calibration.select import check_ready, matching, prunable
from prunus.calibration.statistics import STATISTICS, Statistic, resolved
from prunus.calibration.store import Calibration
from prunus.calibration.sums import Sums
from prunus.calibration.view_check import check_views
from prunus.check import function, globs, whole
from prunus.coupling import Group, couple
from prunus.modes import private
from prunus.progress import progress_bar
from prunus.threads import sparing
from prunus.weights import Weight, weights_of

__all__ = ["NEVER_RAN", "calibrate"]

NEVER_RAN = "its forward never ran on the data"


@plainly
@sparing
def calibrate(
    model: nn.Module,
    data: Any,
    statistics: str | Statistic | Iterable[str | Statistic] = ("gram", "mean"),
    *,
    layers: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    max_samples: int | None = None,
    max_positions: int | None = None,
    loss: Any = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Collect the statistics of the layers' inputs in one streaming pass.

    Networks of up to 65536 parameters without convolutions run with one thread, as in `prune`.

    Args:
        model: the network; a private copy of its modules runs, over the same parameters.
        data: one batch (Tensor, tuple, Mapping) or an iterable of batches.
        statistics: names of prunus.calibration.STATISTICS, and instances of `Statistic`, your own
            too. What reads channel classes is collected of the groups all of whose consumers are
            watched.
        layers: names or globs of the layers to watch; all prunable ones where None.
        exclude: names or globs to leave out.
        max_samples: stop after this many samples (a batch whose tensors differ in length is taken
            whole).
        max_positions: for convolutions, at most this many patches of every sample, drawn with
            `seed` for each layer on its own.
        loss: for what reads the loss's gradient, a function (output, batch) -> scalar, a mean over
            the batch's samples.
        seed: of the drawn positions, and of the signs that stand for more than 64 outputs.
        device: where to run; the model's own where None.
        progress: show a bar; None shows it on a terminal after two seconds.

    Returns:
        a `Calibration`; its Gram matrices are means over samples and positions, in float64.

    Raises:
        ValueError: unknown statistics or layers, empty or unfit data, NaN or infinite weights or
            inputs (the layer is named).
        MemoryError: a statistic would need more than the memory limit.

    Warns:
        RuntimeWarning: all statistics together may take more memory than there is.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}.")
    check_ready(model)
    wanted = resolved([statistics] if isinstance(statistics, str | Statistic) else statistics)
    if not wanted:
        raise ValueError(f"`statistics` must name one or more of {', '.join(STATISTICS)}.")
    for statistic in wanted.values():
        if statistic.reads.source == "pair":
            raise ValueError(
                f"The statistic {statistic.name!r} belongs to two models. Use a recipe with "
                f"inputs='pruned'."
            )
    function("loss", loss, "(output, batch) -> scalar")
    if max_samples is not None:
        whole("max_samples", max_samples, low=1)
    if max_positions is not None:
        whole("max_positions", max_positions, low=1)
    with private(model) as own:
        return _calibrated(
            model,
            own,
            Batches(data),
            wanted,
            layers=layers,
            exclude=exclude,
            max_samples=max_samples,
            max_positions=max_positions,
            loss=loss,
            seed=seed,
            device=device,
            progress=progress,
            total=len(data) if isinstance(data, list) else None,
        )


def _calibrated(
    given: nn.Module,
    model: nn.Module,
    batches: Batches,
    wanted: Mapping[str, Statistic],
    *,
    layers: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    max_samples: int | None,
    max_positions: int | None,
    loss: Any,
    seed: int,
    device: str | torch.device | None,
    progress: bool | None,
    total: int | None,
) -> Calibration:
    """`calibrate` on a private twin of the model that was given."""
    layers, exclude = globs("layers", layers), globs("exclude", exclude)
    known, refused = prunable(model, asked=layers is not None, known=weights_of(model, layers))
    names = matching(known, layers, exclude, refused)
    weights = {name: known[name] for name in names}
    bare = {name: weight.layer() for name, weight in weights.items()}
    guard_memory(
        bare, wanted, device=device_of(model) if device is None else checked_device(device)
    )
    example = first_of(batches.peek(), 2)
    with (
        placed(model, device) as where,
        progress_bar("calibrating", total, progress=progress) as advance,
    ):
        coupling = None
        groups: tuple[Group, ...] = ()
        if any(s.reads.source == "classes" for s in wanted.values()):
            coupling = couple(model, to_device(example, where))
            groups = tuple(
                g
                for g in coupling.groups
                if all(n in weights and weights[n].source.sloped for n in g.consumers)
                and not read_raw(g)  # a part of a class's slope is none
            )
            guard_memory({}, wanted, groups)
        check_views(model, weights.values(), batches.peek(), where)
        found = collect(
            model,
            weights,
            bare,
            wanted,
            batches,
            groups=groups,
            max_samples=max_samples,
            max_positions=max_positions,
            seed=seed,
            loss=loss,
            device=where,
            advance=advance,
        )
    of_layers = any(s.reads.source != "classes" for s in wanted.values())
    unseen: dict[str, str] = {}
    for name in names:
        if name in found.layers:
            why = _unseen(weights[name], found.layers[name], wanted, name in found.blind)
            unseen |= {} if why is None else {name: why}
        if name not in found.layers or (of_layers and not found.layers[name].totals):
            refused[name] = unseen.get(name, NEVER_RAN)
            del bare[name]
    if not bare:
        if unseen:
            raise ValueError(f"No layer shows what was asked for: {listed(unseen)}.")
        raise ValueError(f"None of the layers {names} ran on the data. Check the model's forward.")
    home = {name: layer.weight.device for name, layer in bare.items()}
    return Calibration(
        {name: layer.copied() for name, layer in bare.items()},
        {name: found.layers[name].to(home[name]) for name in bare},
        statistics=wanted,
        fingerprint=found.fingerprint.value,
        samples=found.samples,
        rows=found.fingerprint.rows,
        refused=refused,
        unseen=unseen,
        groups=found.groups,
        example=example,
        model=given,
        coupling=coupling,
    )


def _unseen(weight: Weight, sums: Sums, wanted: Mapping[str, Statistic], blind: bool) -> str | None:
    """Why a layer that ran lacks a statistic, or None where it has all that it can be asked for."""
    for statistic in wanted.values():
        source = statistic.reads.source
        if statistic.name in sums.totals or source == "classes":
            continue
        if source == "inputs" and blind:
            return weight.source.unseen
        if source in ("outputs", "slopes") and not weight.source.alone:
            return (
                f"its module does not show the outputs of this weight alone, which the statistic "
                f"{statistic.name!r} reads"
            )
    return None
