"""The page of one pruning: what was removed where, what it costs, and what it looks like."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prunus.check import by_reason
from prunus.files import write_text
from prunus.report.certificate import certificate_sections
from prunus.report.charts import bars
from prunus.report.network import chain, draw_mask, draw_network, drawable
from prunus.report.page import Block, Chart, Drawing, Section, Table, Text, page
from prunus.report.summary import cost_rows, latency_note, layer_rows, selection_notes
from prunus.report.tables import recipe_rows
from prunus.weights import weight_at

__all__ = ["network_drawings", "pruning_page", "write_report"]

MASKS_SHOWN = 12


def write_report(pruned: Any, path: str | os.PathLike[str], certificate: Any = None) -> Path:
    """Write the page of a `Pruned`, with what is guaranteed of it where a certificate is given.

    Raises:
        ImportError: the extra `report` is not installed.
        OSError: the file cannot be written.
    """
    return write_text(path, pruning_page(pruned, certificate))


def pruning_page(pruned: Any, certificate: Any = None) -> str:
    """The HTML text of a `Pruned`: costs, certificate, layers, masks, and a small network drawn."""
    cost = pruned.cost_after
    lead = (
        f"Recipe **{pruned.name}**, seed {pruned.seed}: {100 * cost.density:.4g} % of the selected "
        f"weights are kept, {100 * cost.model_density:.4g} % of all parameters."
    )
    layers = layer_rows(pruned)
    shares = [{"layer": r["layer"], "density": r["density"]} for r in layers]
    errors = [
        {"layer": r["layer"], "error": r["error"]}
        for r in layers
        if r["error"] is not None and r["error"] > 0
    ]
    charts = [
        Chart("density", bars(shares, label="layer", value="density",
              x_title="density (kept / total)", low=0, high=1), shares, "What each layer keeps."),
    ]  # fmt: skip
    if errors:
        charts.append(
            Chart(
                "error",
                bars(errors, label="layer", value="error", x_title="mean squared output error"),
                errors,
                "E‖Wx − W′x‖² on the calibration inputs, in squared output units.",
            )
        )
    cost_blocks: list[Block] = [
        Table("costs", cost_rows(pruned), f"Before and after; {latency_note(pruned)}.")
    ]
    scores = _scores(pruned.metrics)
    if scores:
        cost_blocks.append(Table("scores", scores, "What `evaluate` said at each stage."))
    sections = [
        Section("Costs", cost_blocks),
        *([] if certificate is None else certificate_sections(certificate)),
        Section("Layers", [charts, Table("layers", layers, "Every pruned layer.")]),
    ]
    drawings = network_drawings(pruned)
    if drawings:
        sections.append(Section("The network", [drawings]))
    masks = [
        Drawing(draw_mask(layer.mask), f"{name}: {_words(layer.mask)}", name)
        for name, layer in list(pruned.layers.items())[:MASKS_SHOWN]
    ]
    more = len(pruned.layers) - len(masks)
    note = f" {more} further layers are left out here." if more > 0 else ""
    said = (
        "Outputs are rows, inputs are columns; a kept weight is blue. Where a layer is larger than "
        "the picture, a cell's shade is the density of its block."
    )
    if masks:  # none where all that went are parameters that no view knows
        sections.append(Section("Masks", [Text(said + note), masks]))
    remarks = [
        f"{', '.join(f'`{name}`' if name else 'the model itself' for name in names)} "
        f"{'was' if len(names) == 1 else 'were'} not pruned, because: {why}"
        for why, names in by_reason(pruned.not_pruned).items()
    ]
    remarks += [*selection_notes(pruned), *pruned.plan.notes, *pruned.notes]
    about: list[Block] = [
        Table("recipe", recipe_rows({pruned.name: pruned.recipe}), "The recipe."),
        Text(f"`{pruned.recipe!r}`"),
    ]
    sections.append(Section("Recipe", about))
    if remarks:
        sections.append(Section("Remarks", [Text("\n\n".join(remarks))]))
    footer = "" if pruned.data_fingerprint is None else f"Data: {pruned.data_fingerprint}."
    return page(f"Pruned by {pruned.name}", sections, lead=lead, footer=footer)


def network_drawings(pruned: Any, *, title: str = "After") -> list[Drawing]:
    """The network before (where the dense model is at hand) and after; empty if it is too large."""
    found = chain(pruned.layers)
    if found is None:
        return []
    names, weights, masks = found
    drawings = []
    if isinstance(pruned.dense, nn.Module):
        before = [weight_at(pruned.dense, n).layer().weight for n in names]
        if drawable([tuple(w.shape) for w in before]):
            drawings.append(Drawing(draw_network(before, names=names), _key("dense"), "Before"))
    drawings.append(Drawing(draw_network(weights, masks, names=names), _key(pruned.name), title))
    return drawings


def _key(what: str) -> str:
    return (
        f"{what}: inputs on the left; blue is a positive weight, orange a negative one, darker is "
        f"larger; a hollow neuron has lost all its inputs or all its outputs."
    )


def _words(mask: Any) -> str:
    empty = int((~mask.any(1)).sum())
    unused = int((~mask.any(0)).sum())
    words = f"{int(mask.sum())} of {mask.numel()} kept"
    if empty:
        words += f", {empty} of {mask.shape[0]} outputs without inputs"
    if unused:
        words += f", {unused} of {mask.shape[1]} inputs unused"
    return words


def _scores(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            **(dict(value) if isinstance(value, Mapping) else {"score": float(value)}),
        }
        for stage, value in metrics.items()
    ]
