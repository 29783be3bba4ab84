"""The layers of a network with the statistics that one step of a pruning reads."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from prunus.calibration import STATISTICS, Calibration, calibrate, collect
from prunus.calibration.calibrating import NEVER_RAN
from prunus.calibration.of_weights import layers_of_weights, reads_weights
from prunus.calibration.statistics import Statistic, combined, names_of, resolved
from prunus.engine.job import Job
from prunus.engine.unit import Layers
from prunus.layer import Layer
from prunus.parts import NODES
from prunus.rows import RowSet
from prunus.weights import weight_at, weights_at

__all__ = ["Found", "Wanted", "bare_layers", "counted", "measurable", "statistics", "with_weights"]

Wanted = Sequence[str | Statistic]


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """What was collected.

    Attributes:
        layers: those that ran, with their statistics.
        never_ran: {name: reason} of the others.
        notes: what the reader should know.
        fingerprint: of the data, or None.
        rows: which samples these were, or None.
    """

    layers: Layers
    never_ran: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fingerprint: str | None = None
    rows: RowSet | None = None


def bare_layers(model: nn.Module, names: Collection[str]) -> dict[str, Layer]:
    """The layers of a model without statistics."""
    return {name: weight.layer() for name, weight in weights_at(model, names).items()}


def with_weights(layers: Layers, model: nn.Module) -> dict[str, Layer]:
    """The layers with their statistics, and with the weights that `model` has now."""
    own = bare_layers(model, layers)
    return {
        name: replace(layer, weight=own[name].weight, bias=own[name].bias)
        for name, layer in layers.items()
    }


def measurable(layers: Layers, wanted: Wanted) -> tuple[Wanted, tuple[str, ...]]:
    """The statistics with the Gram matrix added, from which layer errors are read, if it fits."""
    widest = max(layer.weight.shape[1] for layer in layers.values())
    if "gram" not in names_of(wanted) and widest**2 * 8 > collect.GRAM_BYTES:
        note = (
            f"layer errors were not measured: a Gram matrix of width {widest} exceeds the "
            f"memory limit"
        )
        return wanted, (note,)
    return combined([*wanted, "gram"]), ()


def statistics(
    job: Job, model: nn.Module, names: Sequence[str], wanted: Wanted, *, again: bool
) -> Found:
    """The layers of `model` with the statistics `wanted`, of its own inputs.

    Args:
        job: whose data or calibration are read.
        model: the network as it is now, or was.
        names: its layers.
        wanted: statistics; where there are none, no data are read.
        again: the model is no longer the one that a given calibration knows.

    Raises:
        ValueError: the calibration lacks a layer.
    """
    used = job.recipe.units == NODES  # groups were found by running the model
    if job.calibration is not None:
        watched = {*job.calibration, *job.calibration.unseen}
        watched |= {n for n, why in job.calibration.refused.items() if why == NEVER_RAN}
        missing = [name for name in names if name not in watched]
        if missing:
            asked = weight_at(model, missing[0]).source.on_request
            raise ValueError(
                f"The calibration lacks layer {missing[0]!r}, which this recipe needs. "
                f"Calibrate {'with' if asked else 'without'} `layers`, "
                f"{'which must name it' if asked else 'or name it too'}."
            )
        layers, reasons = shown(job.calibration, model, names, job.recipe.statistics, used=used)
        if again:
            layers = {name: own.to(job.device) for name, own in bare_layers(model, layers).items()}
        else:
            traces = job.calibration.traces
            layers = {n: own.to(job.device).remembering(traces(n)) for n, own in layers.items()}
        return Found(
            layers=layers,
            never_ran=reasons,
            fingerprint=job.calibration.fingerprint,
            rows=job.calibration.rows,
        )
    hidden = all(weight.source.hidden for weight in weights_at(model, names).values())
    if job.batches is None or not wanted or (hidden and not job.recipe.statistics):
        return Found(layers=bare_layers(model, names))
    asked_for = combined(wanted)
    if again and reads_weights(kinds := resolved(asked_for)):  # the first step has seen the data
        own = layers_of_weights(model, names, kinds, job.batches)
        return Found(layers={name: layer.to(job.device) for name, layer in own.items()})
    found = calibrate(
        model,
        job.batches,
        asked_for,
        layers=list(names),
        loss=job.loss,
        seed=job.seed,
        device=job.device,
        progress=job.progress,
    )
    layers, reasons = shown(found, model, names, job.recipe.statistics, used=used)
    return Found(layers=layers, never_ran=reasons, fingerprint=found.fingerprint, rows=found.rows)


def shown(
    found: Calibration, model: nn.Module, names: Sequence[str], needed: Wanted, *, used: bool
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that have what a recipe needs, and {name: reason} of the others.

    A layer whose module does not show its inputs goes without the statistics that only measure.

    Args:
        found: the statistics.
        model: the network.
        names: of the layers.
        needed: statistics that the recipe reads.
        used: the layers are known to matter: one that never ran has a weight that the code uses
            without its module, which does not show its inputs.
    """
    layers: dict[str, Layer] = {}
    reasons: dict[str, str] = {}
    for name in names:
        layer = found.get(name)
        why = found.unseen.get(name, found.refused.get(name, NEVER_RAN) if used else None)
        if layer is not None and name not in found.unseen:
            layers[name] = layer
            continue
        if why is None:
            reasons[name] = found.refused[name]
            continue
        if layer is None:
            layer = weight_at(model, name).layer()
        if all(_has(layer, statistic) for statistic in resolved(needed).values()):
            layers[name] = layer
        else:
            reasons[name] = why
    return layers, reasons


def _has(layer: Layer, statistic: Statistic) -> bool:
    return statistic.name in layer.statistics or any(
        statistic.name in STATISTICS[name]().reads.covers
        for name in layer.statistics
        if name in STATISTICS
    )


@contextmanager
def counted(model: nn.Module, names: Collection[str]) -> Iterator[dict[str, int]]:
    """The largest number of calls of each layer in one forward pass, counted inside the block."""
    most = dict.fromkeys(names, 0)
    now = dict.fromkeys(names, 0)

    def begin(module: nn.Module, args: object) -> None:
        now.update(dict.fromkeys(names, 0))

    def note(name: str, module: nn.Module, args: object) -> None:
        now[name] += 1
        most[name] = max(most[name], now[name])

    hooks = [model.register_forward_pre_hook(begin)]
    try:
        hooks += [
            weight_at(model, name).module.register_forward_pre_hook(partial(note, name))
            for name in names
        ]
        yield most
    finally:
        for hook in hooks:
            hook.remove()
