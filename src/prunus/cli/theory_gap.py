"""`prunus theory gap`: bound, prediction and measurement of the gap before training."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="How much a pruned network may differ from the dense one: bounds and predictions.",
)

Method = Annotated[str, typer.Option(help="random, random_rescaled or magnitude.")]
Law = Annotated[str, typer.Option(help="he_uniform, he_normal, lecun_normal, torch_linear, …")]
Activation = Annotated[str, typer.Option(help="relu, tanh, gelu, …")]
Delta = Annotated[float, typer.Option(help="Failure probability of the bounds.")]


@app.command()
def curve(
    against: Annotated[str, typer.Option(help="density, width or depth.")] = "density",
    values: Annotated[
        str | None, typer.Option(help="Values on the axis, with commas; a usual set if omitted.")
    ] = None,
    width: Annotated[int, typer.Option(help="Hidden units and inputs.")] = 100,
    depth: Annotated[int, typer.Option(help="Linear layers.")] = 2,
    outputs: Annotated[int, typer.Option(help="Outputs.")] = 10,
    density: Annotated[float, typer.Option(help="Kept / total of every layer.")] = 0.9,
    method: Method = "random",
    law: Law = "he_uniform",
    activation: Activation = "relu",
    delta: Delta = 0.05,
    draws: Annotated[int, typer.Option(help="Networks drawn to measure; 0: none.")] = 20,
    sup_draws: Annotated[
        int, typer.Option(help="Networks in which ascent seeks the largest gap; 0: none.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Stem of the files: STEM.svg, .png, .csv and .json of the figure, and "
            "STEM-table.json."
        ),
    ] = None,
) -> None:
    """Bounds (dashed), prediction (solid) and measurement (points) along one axis.

    Inputs have length 1; the sup is over the unit ball. The statements are about networks as
    initialised, not as trained.

    Example: prunus theory gap curve --against density --width 100 --depth 2 --out gap
    """
    from prunus.check import unknown
    from prunus.files import write_text

    usual = {
        "density": "0.99,0.97,0.95,0.9,0.8,0.7,0.5,0.3,0.1",
        "width": "20,50,100,200,500",
        "depth": "1,2,3,4,5",
    }
    if against not in usual:
        raise unknown("axis", against, usual)
    rows, records = [], []
    for value in _numbers(values or usual[against]):
        point = {"density": density, "width": width, "depth": depth}
        point[against] = value if against == "density" else int(value)
        if against != "density" and value != int(value):
            raise ValueError(f"--values must be whole numbers for a {against}, got {value:g}.")
        row = _row(point, outputs, method, law, activation, delta, draws, sup_draws, seed)
        rows.append({against: value, **row})
        records += _records(against, value, row)
    head = [against, "sup bound", "sup found", "rms bound", "rms predicted", "rms measured"]
    typer.echo("  ".join(f"{name:>13}" for name in head))
    for found in rows:
        typer.echo("  ".join(_cell(found.get(name)) for name in head))
    if any(found["vacuous"] for found in rows):
        typer.echo(
            "where the sup bound is no smaller than ‖F‖ + ‖f‖ can be, it is vacuous; the rms bound "
            "is the number to plan with before training"
        )
    if out is not None:
        from prunus.report.figure import beside, figure, save_figure

        chart = figure(
            records,
            x=against,
            y="gap",
            x_title=f"{against}" + (" (kept / total)" if against == "density" else ""),
            y_title="gap ‖F(x) − f(x)‖, input length 1",
            y_scale="log",
            x_scale="log" if against == "width" else "linear",
            title=f"{method}, {law}, {activation}, δ = {delta:g}",
            width=460,
            height=320,
        )
        typer.echo(write_text(beside(out, "-table.json"), json.dumps(rows, indent=1) + "\n"))
        for path in save_figure(chart, out, records):
            typer.echo(path)


@app.command()
def norm(
    rows: Annotated[int, typer.Argument(help="Rows of the layer.")],
    columns: Annotated[int, typer.Argument(help="Columns of the layer.")],
    density: Annotated[float, typer.Option(help="Kept / total.")] = 0.9,
    method: Method = "random",
    law: Law = "he_uniform",
    delta: Delta = 0.05,
) -> None:
    """Thresholds of the norms of W, W − V and V of one random layer.

    Example: prunus theory gap norm 300 100 --density 0.9 --method magnitude
    """
    from prunus.check import unknown
    from prunus.theory.gap.laws import METHODS, PRESETS
    from prunus.theory.gap.layer_norms import layer_norm
    from prunus.theory.gap.network import LayerShape, threshold_of
    from prunus.theory.gap.words import confidence

    if law not in PRESETS:
        raise unknown("law", law, PRESETS)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    weights = PRESETS[law](rows, columns)
    for part in ("dense", "pruned", "kept"):
        cut, share = None, delta
        if method == "magnitude" and part == "pruned":
            share = delta / 2
            cut = threshold_of(
                LayerShape(outputs=rows, inputs=columns), weights, density, delta / 2
            )
        found = layer_norm(
            rows,
            columns,
            weights,
            share,
            method=method,  # checked above
            density=density,
            part=part,
            threshold=cut,
        )
        typer.echo(
            f"‖{part}‖ ≤ {found.value:.6g} with probability {confidence(delta)} ({found.route})"
        )


@app.command(name="minimal-width")
def minimal_width(
    depth: Annotated[int, typer.Option(help="Linear layers.")] = 2,
    limit: Annotated[float, typer.Option(help="Largest gap over the unit ball.")] = 0.1,
    exponent: Annotated[
        float, typer.Option(help="α: of N weights a layer loses N^(1 − α).")
    ] = 0.25,
    method: Method = "magnitude",
    delta: Delta = 0.05,
) -> None:
    """The least width at which pruning N^(1 − α) weights per layer is guaranteed to cost little.

    Example: prunus theory gap minimal-width --depth 3 --limit 0.1 --exponent 0.25
    """
    from prunus.check import unknown
    from prunus.theory.gap import inverse
    from prunus.theory.gap.laws import METHODS

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    found, twice = inverse.minimal_width(
        depth,
        limit,
        exponent,
        method=method,  # checked above
        delta=delta,
    )
    typer.echo(f"width {found}: gap ≤ {limit:g}; at width {2 * found}: gap ≤ {twice:.4g}")


def _row(
    point: dict[str, Any],
    outputs: int,
    method: str,
    law: str,
    activation: str,
    delta: float,
    draws: int,
    sup_draws: int,
    seed: int,
) -> dict[str, Any]:
    from prunus.rng import generator_for
    from prunus.theory.gap.apriori import sup_bound
    from prunus.theory.gap.mean_square import mean_field, mean_square_bound
    from prunus.theory.gap.network import random_network
    from prunus.theory.gap.simulate import simulated_gaps, simulated_sups

    widths = [point["width"]] * point["depth"] + [outputs]
    options: dict[str, Any] = {"laws": law, "activations": activation, "method": method}
    sup = sup_bound(widths, point["density"], delta=delta, **options)
    row: dict[str, Any] = {
        "sup bound": sup.value,
        "sup route": sup.route,
        "vacuous": sup.vacuous,
        "rms predicted": mean_field(widths, point["density"], **options).value,
    }
    try:
        row["rms bound"] = mean_square_bound(widths, point["density"], **options).value
    except ValueError:  # φ(0) ≠ 0 has no mean square theorem
        row["rms bound"] = None
    network = random_network(widths, point["density"], **options)
    generator = generator_for(seed, "theory gap", *map(str, point.values()))
    if draws:
        gaps = simulated_gaps(network, draws, inputs=8, generator=generator)
        per_draw = gaps.reshape(draws, -1).square().mean(dim=1).sqrt()
        row["rms measured"] = float(gaps.square().mean().sqrt())
        row["rms low"], row["rms high"] = float(per_draw.min()), float(per_draw.max())
    if sup_draws:
        sups = simulated_sups(network, sup_draws, steps=60, generator=generator)
        row["sup found"] = float(sups.max())
        row["sup low"], row["sup high"] = float(sups.min()), float(sups.max())
    return row


def _records(against: str, value: float, row: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"series": "largest gap: bound", "kind": "bound", "gap": row["sup bound"]},
        {"series": "rms gap: predicted", "kind": "theory", "gap": row["rms predicted"]},
    ]
    if row["rms bound"] is not None:
        found.append({"series": "rms gap: bound", "kind": "bound", "gap": row["rms bound"]})
    for series, mean, low, high in (
        ("largest gap: found by ascent", "sup found", "sup low", "sup high"),
        ("rms gap: measured", "rms measured", "rms low", "rms high"),
    ):
        if mean in row:
            bands = {"low": row[low], "high": row[high]}
            found.append({"series": series, "kind": "measured", "gap": row[mean], **bands})
    return [{against: value, **record} for record in found]


def _cell(value: Any) -> str:
    return f"{'':>13}" if value is None else f"{value:>13.4g}"


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--values must be numbers with commas, got {text!r}.") from None
