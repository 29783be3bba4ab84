"""`prunus theory subset-sum`: how wide a random network must be to hold a given one."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Target networks inside random ones: items needed, and a construction measured.",
)


@app.command()
def needed(
    eps: Annotated[
        str, typer.Option(help="Errors of single weights in [−1/2, 1/2], with commas.")
    ] = "0.1,0.01,0.001,0.0001",
    delta: Annotated[float, typer.Option(help="Failure probability.")] = 0.1,
    weights: Annotated[int, typer.Option(help="Weights that must all be met.")] = 1,
) -> None:
    """Samples per weight that three constructions need: subset sum, logarithmic, polynomial.

    The subset sum's by a law that agrees with draws, beside the least that any items allow;
    the others' by their proofs.

    Example: prunus theory subset-sum needed --eps 0.01 --weights 1000
    """
    from prunus.theory.logarithmic import samples_needed
    from prunus.theory.subset_sum import items_needed, least_items, single_items_needed

    head = ("eps", "at least", "uniform", "product", "logarithmic", "single sample")
    typer.echo("  ".join(f"{name:>13}" for name in head))
    for value in _numbers("--eps", eps, float):
        cells: list[Any] = [
            f"{value:g}",
            least_items(value),
            items_needed(value, delta, weights),
            items_needed(value, delta, weights, "product"),
            round(samples_needed(value, delta, weights) / weights, 1),
            single_items_needed(value, delta / weights),
        ]
        typer.echo("  ".join(f"{cell:>13}" for cell in cells))


@app.command()
def construct(
    sizes: Annotated[
        str, typer.Option(help="Inputs and the width of every layer, with commas.")
    ] = "6,8,8,4",
    items: Annotated[str, typer.Option(help="Items per slot, with commas.")] = "4,8,12,16",
    tied: Annotated[
        bool, typer.Option("--tied", help="Units read inputs in turn, as published.")
    ] = False,
    points: Annotated[int, typer.Option(help="Inputs on the unit sphere that measure.")] = 20_000,
    draws: Annotated[int, typer.Option(help="Random networks for each number of items.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Stem of the files: .json, .svg, .png and .csv.")
    ] = None,
) -> None:
    """Build target networks of spectral norms 1 inside random ones and measure what is left.

    Per number of items: the largest error of a weight, the largest error of an output over the
    points (measured), and the bound for every input of length 1 (from the built weights).

    Example: prunus theory subset-sum construct --items 8,12,16 --out subset-sum
    """
    from prunus.check import whole
    from prunus.progress import track

    widths = [whole("sizes", v, low=1) for v in _numbers("--sizes", sizes, int)]
    if len(widths) < 2:
        raise ValueError(f"--sizes must name inputs and at least one layer, got {sizes!r}.")
    counts = _numbers("--items", items, int)
    whole("points", points, low=1)
    whole("draws", draws, low=1)
    cells = [(n, draw) for n in counts for draw in range(draws)]
    rows = [_built(widths, n, not tied, points, seed, draw) for n, draw in track(cells, "networks")]
    head = ("items", "weight error", "output error", "bound", "bound/error", "kept")
    typer.echo("  ".join(f"{name:>13}" for name in head))
    for n in counts:
        own = [row for row in rows if row["items"] == n]
        mean = {key: sum(row[key] for row in own) / len(own) for key in own[0]}
        cells_text = [f"{n:>13}"] + [
            f"{mean[key]:>13.3g}" for key in ("weight", "output", "bound", "ratio", "kept")
        ]
        typer.echo("  ".join(cells_text))
    if out is not None:
        from prunus.report.figure import figure, save_figure

        records = [record for n in counts for record in _records(n, rows)]
        chart = figure(
            records,
            x="items",
            y="error",
            x_title="items per slot",
            y_title="largest error, inputs of length 1",
            y_scale="log",
        )
        for path in save_figure(chart, out, records):
            typer.echo(path)


def _records(n: int, rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """The points of one number of items: what the theorem allows, the law says, and came out."""
    found = []
    series = {
        "output": ("output error", "measured"),
        "bound": ("bound on the output error", "bound"),
        "weight": ("weight error", "measured"),
        "law": ("weight error by the law", "theory"),
    }
    for key, (name, kind) in series.items():
        own = sorted(row[key] for row in rows if row["items"] == n)
        record = {"items": n, "error": own[len(own) // 2], "series": name, "kind": kind}
        if kind == "measured":
            record |= {"low": own[0], "high": own[-1]}
        found.append(record)
    return found


def _built(
    widths: list[int], n: int, assign: bool, points: int, seed: int, draw: int
) -> dict[str, float]:
    """One target network built: its errors and its bound."""
    import itertools

    import torch

    from prunus.rng import generator_for
    from prunus.theory.subset_sum import construct as build
    from prunus.theory.subset_sum import largest_error

    source = generator_for(seed, f"target network {draw}")
    weights = []
    for wide, out in itertools.pairwise(widths):
        drawn = torch.randn(out, wide, dtype=torch.float64, generator=source)
        weights.append(drawn / torch.linalg.matrix_norm(drawn, 2))
    made = build(weights, n, generator=generator_for(seed, f"network {draw}, {n}"), assign=assign)
    x = torch.randn(points, widths[0], dtype=torch.float64, generator=source)
    x /= x.norm(dim=1, keepdim=True)
    wanted = x
    for i, weight in enumerate(weights):
        wanted = wanted @ weight.T
        wanted = wanted.relu() if i < len(weights) - 1 else wanted
    with torch.no_grad():
        output = float((made.network()(x) - wanted).norm(dim=1).max())
    bound = made.error_bound(1.0)
    copies = [1 if block.nonnegative else 2 for block in made.blocks]
    law = max(  # of the layer whose worst weight is worst
        block.scale * largest_error(n, c * block.target.numel(), "product")
        for c, block in zip(copies, made.blocks, strict=True)
    )
    return {
        "law": law,
        "items": n,
        "weight": max(block.error for block in made.blocks),
        "output": output,
        "bound": bound,
        "ratio": bound / output if output else 1.0,
        "kept": made.kept / made.total,
    }


def _numbers(option: str, text: str, kind: Any) -> list[Any]:
    """Numbers with commas between; 8.5 items are refused and not run as 8."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        kinds = " (whole ones)" if kind is int else ""
        raise ValueError(
            f"{option} must hold numbers with commas between, got {text!r}{kinds}."
        ) from None
