"""The page of one pruning: what was removed where, what it costs, and what it looks like."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prunus.files import Row, write_text
from prunus.report.certificate import certificate_sections
from prunus.report.footing import footing
from prunus.report.headline import named_score, pruned_headline, shown_score
from prunus.report.layers import layer_charts, shown_layers
from prunus.report.network import chain, draw_mask, draw_network, drawable
from prunus.report.page import Block, Drawing, Section, Table, Text, page
from prunus.report.summary import latency_note, layer_rows, selection_notes, shown_costs
from prunus.report.tables import RECIPE_COLUMNS, recipe_rows
from prunus.weights import weight_at

__all__ = ["network_drawings", "pruning_page", "write_report"]

MASKS_SHOWN = 12
LAYER_TITLES = {"why": "not pruned, because", "error": "error (squared units)",
                "relative": "error (of the output)"}  # fmt: skip


def write_report(
    pruned: Any,
    path: str | os.PathLike[str],
    certificate: Any = None,
    *,
    made: str | None = None,
) -> Path:
    """Write the page of a `Pruned`, with what is guaranteed of it where a certificate is given.

    Raises:
        ImportError: the extra `report` is not installed.
        OSError: the file cannot be written.
    """
    return write_text(path, pruning_page(pruned, certificate, made=made))


def pruning_page(pruned: Any, certificate: Any = None, *, made: str | None = None) -> str:
    """The HTML text of a `Pruned`: its headline, pictures, costs, certificate, layers.

    Args:
        pruned: what `prune` answered.
        certificate: what `certify` found of it, or None.
        made: the date in the page's foot; today's where None.
    """
    cost = pruned.cost_after
    lead = (
        f"Recipe **{pruned.name}**, seed {pruned.seed}: {100 * cost.density:.4g} % of the selected "
        f"weights are kept, {100 * cost.model_density:.4g} % of all parameters."
    )
    cost_blocks: list[Block] = [
        Table("costs", shown_costs(pruned), f"Before and after; {latency_note(pruned)}.")
    ]
    scores = _scores(pruned.metrics)
    if scores:
        cost_blocks.append(Table("scores", scores, "What `evaluate` said at each stage."))
    sections = [
        Section("Pictures", _pictures(pruned)),
        Section("Costs", cost_blocks),
        *([] if certificate is None else certificate_sections(certificate)),
        Section("Layers", [_layer_table(pruned)]),
    ]
    about: list[Block] = [
        Table(
            "recipe",
            recipe_rows({pruned.name: pruned.recipe}),
            "The recipe.",
            shown=RECIPE_COLUMNS,
        ),
        Text(f"`{pruned.recipe!r}`"),
    ]
    sections.append(Section("Recipe", about))
    remarks = [*selection_notes(pruned), *pruned.plan.notes, *pruned.notes]
    if remarks:
        sections.append(Section("Remarks", [Text("\n\n".join(remarks))]))
    return page(
        f"Pruned by {pruned.name}",
        sections,
        headline=pruned_headline(pruned, certificate),
        lead=lead,
        footer=footing(
            made=made,
            data=pruned.data_fingerprint,
            samples=None if pruned.data_rows is None else len(pruned.data_rows),
        ),
    )


def _pictures(pruned: Any) -> list[Block | Sequence[Block]]:
    """What each layer keeps and loses, the network where it is small, and the masks."""
    layers = layer_rows(pruned)
    blocks: list[Block | Sequence[Block]] = [layer_charts(layers)]
    drawings = network_drawings(pruned)
    if drawings:
        blocks.append(drawings)
    masks = [
        Drawing(draw_mask(layer.mask), f"{name}: {_words(layer.mask)}", name)
        for name, layer in list(pruned.layers.items())[:MASKS_SHOWN]
    ]
    more = len(pruned.layers) - len(masks)
    note = f" {more} further layers are left out here." if more > 0 else ""
    words = Text(
        "Masks: outputs are rows, inputs are columns; a kept weight is blue. Where a layer is "
        "larger than the picture, a cell's shade is the density of its block." + note
    )
    return [*blocks, words, masks] if masks else blocks  # experts have none


def _layer_table(pruned: Any) -> Table:
    """Every layer with weights, the pruned ones first; those left alone are dense."""
    rows: list[Row] = shown_layers(layer_rows(pruned))
    rows += [
        {"layer": name or "the model itself", "density": "dense", "why": why}
        for name, why in pruned.not_pruned.items()
    ]
    caption = "Every layer with weights."
    if pruned.not_pruned:
        caption += f" {len(pruned.not_pruned)} were not pruned and are dense, for the reason given."
    return Table("layers", rows, caption, LAYER_TITLES)


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


def _scores(metrics: Mapping[str, Any]) -> list[Row]:
    return [
        {
            "stage": stage,
            **{
                named_score(str(name)): shown_score(str(name), float(number))
                for name, number in (
                    value.items() if isinstance(value, Mapping) else [("metric", value)]
                )
            },
        }
        for stage, value in metrics.items()
    ]
