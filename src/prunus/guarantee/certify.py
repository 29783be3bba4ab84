"""What is guaranteed of a pruned model, beside what is predicted and what is measured."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.calibration.batches import Batches, call, first_of
from prunus.check import fraction, positive
from prunus.guarantee.criteria import Outputs, float_inputs, reason_of, sampled
from prunus.guarantee.extract import Unsupported, extract, pruned_model
from prunus.modes import evaluating
from prunus.rows import RowSet, row_hashes
from prunus.theory.gap import Certificate, Statement
from prunus.theory.gap import certify as certify_stages
from prunus.theory.gap.certificate import data_statements
from prunus.theory.gap.statement import warn_vacuous

__all__ = ["certify"]

LARGEST = 4096  # samples of which statements are made; more would not tighten them much


def certify(
    model: nn.Module,
    pruned: Any,
    *,
    data: Any = None,
    radius: float | None = None,
    delta: float = 0.05,
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

    Raises:
        TypeError: a module has no rule for a sup bound and there are no data.
        ValueError: the models differ in structure, or neither data nor radius is given.

    References:
        docs/gap.md
    """
    fraction("delta", delta)
    if radius is not None:
        positive("radius", radius)
    if data is None and radius is None:
        raise ValueError("`certify` needs `data`, or the `radius` of a ball around 0.")
    other = pruned_model(model, pruned)
    batches = None if data is None else Batches(data)
    if batches is not None:
        for network in (model, other):  # data that do not fit are refused in the model's words
            with evaluating(network), torch.no_grad():
                call(network, first_of(batches.peek(), 2))
    read = [] if batches is None else sampled(batches, LARGEST)
    inputs = float_inputs(read)
    seen = _seen(pruned, read)
    in_sample = bool(seen)
    try:
        found = extract(model, other, inputs)
    except Unsupported as error:
        if batches is None:
            raise
        return _stated(_from_outputs(model, other, read, delta, in_sample, reason_of(error)), seen)
    x = None if inputs is None else inputs.double()
    centre = None if x is None else x.mean(dim=0)
    covers = radius is not None
    if x is not None and centre is not None:
        distances = (x - centre).flatten(1).norm(dim=1)
        reach = float(distances.max())
        covers = radius is not None and reach <= radius
        # a single sample is its own mean: a ball of radius 0 is no ball
        radius = radius or reach * (1 + 1e-9) or float(x.norm()) or 1.0
    assert radius is not None
    certificate = certify_stages(
        found.stages,
        radius=radius,
        centre=centre,
        input_shape=found.shape,
        delta=delta,
        samples=x,
        in_sample=in_sample,
        covers_support=covers,
        dtype=found.dtype,
    )
    return _stated(certificate, seen)


def _seen(pruned: Any, batches: list[Any]) -> dict[str, tuple[int, int]]:
    """{what they did: (samples that did it, all samples)} of those that made the pruning."""
    uses = {
        "calibrate": getattr(pruned, "data_rows", None),
        "plan": getattr(getattr(pruned, "plan", None), "rows", None),
    }
    known = {use: rows for use, rows in uses.items() if isinstance(rows, RowSet) and len(rows)}
    if not known or not batches:
        return {}
    hashes = torch.cat([row_hashes(batch) for batch in batches])
    counts = {use: rows.among(hashes) for use, rows in known.items()}
    return {use: (count, len(hashes)) for use, count in counts.items() if count}


def _stated(certificate: Certificate, seen: dict[str, tuple[int, int]]) -> Certificate:
    """The certificate with a note of the overlap."""
    notes = tuple(
        f"{count} of {total} rows were used to {use}: statements from them are in-sample"
        for use, (count, total) in seen.items()
    )
    return replace(certificate, notes=(*certificate.notes, *notes))


def _from_outputs(
    model: nn.Module,
    pruned: nn.Module,
    batches: list[Any],
    delta: float,
    in_sample: bool,
    reason: str,
) -> Certificate:
    """Held-out statements alone, for a network without a sup bound."""
    outputs = Outputs(model, batches)
    first, second = outputs.dense, outputs.of(pruned)
    changed, held_out = data_statements(first, second, delta=delta, in_sample=in_sample)
    sup = Statement(
        kind="sup",
        status="RIG",
        level="L3",
        value=math.inf,
        route="none",
        measured=float((first - second).norm(dim=1).max()),
        vacuous=True,
        reason="no finite bound exists for this network",
        assumptions=(reason,),
    )
    warn_vacuous([sup])
    return Certificate(
        statements=(sup, *changed),
        held_out=tuple(held_out),
        gaps=tuple((first - second).norm(dim=1).tolist()),
    )
