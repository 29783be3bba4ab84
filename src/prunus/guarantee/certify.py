"""What is guaranteed of a pruned model, beside what is predicted and what is measured."""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from prunus.ambient import plainly
from prunus.check import finite, fraction, positive
from prunus.guarantee.agree import ROWS, agree, agree_in_own_dtype, probes
from prunus.guarantee.arithmetic import largest_of, unit_of
from prunus.guarantee.criteria import Outputs, float_inputs, sampled
from prunus.guarantee.extract import Unsupported, extract
from prunus.guarantee.masks import pruned_model
from prunus.guarantee.networks import RealPair
from prunus.guarantee.relative import layer_statements
from prunus.guarantee.rules import AVAILABLE, reason_of
from prunus.hints import Batch
from prunus.modes import private
from prunus.rows import RowSet, row_hashes, state_sum
from prunus.surgery.cut import changes_norms
from prunus.theory.gap import Certificate, Statement
from prunus.theory.gap import certify as certify_stages
from prunus.theory.gap.from_data import data_statements
from prunus.theory.gap.statement import warn_vacuous
from prunus.threads import sparing

__all__ = ["certify"]

# Modules that compute something else in training mode.
DIFFERENT = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
DISTINCT = 0.9  # share of the rows below which repeated ones are mentioned
LARGEST = 4096  # samples of which statements are made; more would not tighten them much


@plainly(autocast=True)
@sparing
def certify(
    model: nn.Module,
    pruned: Any,
    *,
    data: Any = None,
    radius: float | None = None,
    delta: float = 0.05,
    calibration: Any = None,
) -> Certificate:
    """Bounds on the gap between a model and its pruned form, with predictions and measurements.

    Over a ball of inputs the sup bound holds for every input; fresh data adds held-out statements,
    each true with probability ≥ 1 − δ. Works on nets pruned by anyone.

    Args:
        model: the dense network.
        pruned: a module of equal structure, a `Pruned`, or {layer name: mask}.
        data: batches that neither trained nor calibrated; the ball is then centred at their mean,
            else at 0. The first 4096 samples are read: measurements, and a radius taken from the
            data, are of these.
        radius: of the ball; the largest distance of the data from their mean if None. A radius
            given is taken to cover every input the data's distribution can produce.
        delta: failure probability of each held-out statement.
        calibration: batches, or a `Calibration` with the statistic "share", for statements about
            single layers (`Certificate.layers`): how far any mask or new weights move the outputs
            of a layer, relative to the sums that they are made of. Bounds hold at the calibration
            inputs, predictions and held-out quantiles at the `data`, and for draws of
            `sipp-random` before they are made.

    Raises:
        TypeError: a module has no rule for a sup bound and there are no data.
        ValueError: the models differ in structure, or neither data nor radius is given.

    References:
        docs/gap.md; docs/sampling_methods.md for single layers.
    """
    fraction("delta", delta)
    if radius is not None:
        positive("radius", radius)
    if data is None and radius is None:
        raise ValueError("`certify` needs `data`, or the `radius` of a ball around 0.")
    with private(model) as dense, private(pruned_model(model, pruned)) as thin:
        return _certified(dense, thin, pruned, data, radius, delta, calibration)


def _certified(
    model: nn.Module,
    other: nn.Module,
    pruned: Any,
    data: Any,
    radius: float | None,
    delta: float,
    calibration: Any,
) -> Certificate:
    """`certify` on private twins of both networks."""
    for network in (model, other):
        for name, parameter in network.named_parameters():
            finite(name, parameter.detach(), "Retrain or reload the model.")
    read = [] if data is None else sampled(data, LARGEST)
    inputs = float_inputs(read)
    outputs = None if data is None else _outputs(model, other, read)
    hashes = torch.cat([torch.empty(0, dtype=torch.int64), *map(row_hashes, read)])
    seen = _seen(pruned, hashes)
    try:
        certificate = _over_ball(model, other, inputs, outputs, radius, delta, bool(seen))
    except Unsupported as error:
        if outputs is None:
            raise
        certificate = _from_outputs(*outputs, delta, bool(seen), reason_of(error))
    notes = [
        f"{count} of {len(hashes)} rows were used to {use}: statements from them are in-sample"
        for use, count in seen.items()
    ]
    distinct = len(RowSet.of([hashes]))
    if distinct < DISTINCT * len(hashes):
        notes.append(
            f"{distinct} of {len(hashes)} rows are distinct, and held-out statements take them as "
            f"independent draws"
        )
    layers: tuple[Statement, ...] = ()
    if calibration is not None:
        layers, said = layer_statements(model, other, pruned, calibration, read, delta, bool(seen))
        notes += said
    cautions = _cautions(model, pruned)
    return replace(
        certificate, layers=layers, notes=(*certificate.notes, *notes), cautions=cautions
    )


def _cautions(model: nn.Module, pruned: Any) -> tuple[str, ...]:
    """What of the networks themselves makes a certificate one of something else."""
    found = []
    then = getattr(pruned, "dense_state", None)
    if then is not None and then != state_sum(model):
        found.append(
            "the dense network is not the one that was pruned: its weights have changed since. "
            "The gap is that to the network as it is now."
        )
    if changes_norms(pruned):
        found.append(
            "norms of the compact network take their statistics over what stays "
            "(Node(inexact=True)), so that it is another network than the masked one, of which "
            "this speaks. certify(model, pruned.compact(), data=...) speaks of it."
        )
    training = [
        name or "the model itself"
        for name, module in model.named_modules()
        if module.training and isinstance(module, DIFFERENT)
    ]
    if training:
        more = f" and {len(training) - 3} more" if len(training) > 3 else ""
        found.append(
            f"the model is in training mode, and {', '.join(training[:3])}{more} compute something "
            f"else there. The gap is that of both networks in evaluation mode."
        )
    return tuple(found)


def _outputs(model: nn.Module, pruned: nn.Module, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Both networks' own outputs on the data.

    Raises:
        ValueError: the data do not fit, or an output is NaN or infinite, or of another shape.
    """
    found = Outputs(model, batches)
    thin = found.of(pruned)
    if thin.shape != found.dense.shape:
        theirs = dict(pruned.named_parameters())
        shapes = (
            f" Layer parameter {name!r} has shape {tuple(p.shape)} before and "
            f"{tuple(theirs[name].shape)} after pruning."
            for name, p in model.named_parameters()
            if name in theirs and theirs[name].shape != p.shape
        )
        raise ValueError(
            f"the networks' outputs have shapes {tuple(found.dense.shape)} and "
            f"{tuple(thin.shape)}: they cannot be compared.{next(shapes, '')}"
        )
    if not bool(torch.isfinite(thin).all()):
        raise ValueError("The pruned network's outputs on the data are NaN or infinite.")
    return found.dense, thin


def _over_ball(
    model: nn.Module,
    pruned: nn.Module,
    inputs: Tensor | None,
    outputs: tuple[Tensor, Tensor] | None,
    radius: float | None,
    delta: float,
    in_sample: bool,
) -> Certificate:
    """Everything that can be said of networks whose modules have rules.

    Raises:
        Unsupported: a module has none, or does not compute what its rule says.
    """
    if inputs is None and outputs is not None:
        raise Unsupported(f"the inputs are no single tensor of floats. {AVAILABLE}")
    found = extract(model, pruned, inputs)
    x = None if inputs is None else inputs.double()
    centre = torch.zeros(found.shape, dtype=torch.float64) if x is None else x.mean(dim=0)
    covers = False
    if x is not None:
        reach = float((x - centre).flatten(1).norm(dim=1).max())
        covers = radius is not None and reach <= radius
        # a single sample is its own mean: a ball of radius 0 is no ball
        radius = radius or reach * (1 + 1e-9) or float(x.norm()) or 1.0
    assert radius is not None  # asked for where there are no data
    unit, largest = unit_of(model, pruned), largest_of(model, pruned)
    both = RealPair(model, pruned, None if x is None or outputs is None else (x, *outputs))
    points = probes(centre[None], radius)
    agree(found, model, pruned, points if x is None else torch.cat([x[:ROWS], points]))
    read, *real = both(points if x is None else x)
    for thin, network in ((False, model), (True, pruned)):
        agree_in_own_dtype(
            found, network, read, real[thin], unit, largest=largest, pruned=thin,
            entry=both.entry if thin else 0.0,
        )  # fmt: skip
    return certify_stages(
        found.stages,
        radius=radius,
        centre=centre,
        delta=delta,
        samples=x,
        in_sample=in_sample,
        covers_support=covers,
        unit=unit,
        largest=largest,
        entry=both.entry,
        networks=both,
    )


def _seen(pruned: Any, hashes: Int64[Tensor, " samples"]) -> dict[str, int]:
    """{what they did: how many of the samples} for those that made the pruning."""
    uses = {
        "calibrate": getattr(pruned, "data_rows", None),
        "plan": getattr(getattr(pruned, "plan", None), "rows", None),
    }
    counts = {use: rows.among(hashes) for use, rows in uses.items() if isinstance(rows, RowSet)}
    return {use: count for use, count in counts.items() if count}


def _from_outputs(
    dense: Tensor, pruned: Tensor, delta: float, in_sample: bool, reason: str
) -> Certificate:
    """Held-out statements alone, for networks without a sup bound."""
    changed, held_out = data_statements(dense, pruned, delta=delta, in_sample=in_sample)
    gaps = (dense - pruned).norm(dim=1)
    sup = Statement(
        kind="sup",
        status="RIG",
        level="L3",
        value=math.inf,
        route="none",
        measured=float(gaps.max()),
        vacuous=True,
        reason="no finite bound exists for this network",
        assumptions=(reason,),
    )
    warn_vacuous([sup])
    return Certificate(
        statements=(sup, *changed), held_out=tuple(held_out), gaps=tuple(gaps.tolist())
    )
