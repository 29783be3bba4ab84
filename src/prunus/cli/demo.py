"""`prunus demo`: small networks on the digits, pruned by every basic recipe, as one report."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html and records.jsonl.")] = Path(
        "demo-report"
    ),
    seeds: Annotated[int, typer.Option(help="How many networks of each kind are trained.")] = 3,
    every: Annotated[
        bool, typer.Option("--every", help="All recipes, not the basic ones; takes minutes.")
    ] = False,
) -> None:
    """Train two small networks, prune them with every basic recipe, and write one report.

    Takes one to two minutes. The page opens without a network, and needs no other file.

    Example: prunus demo --seeds 1 --out demo-report
    """
    import os
    import textwrap

    import torch

    from prunus.bench.data.tasks import task
    from prunus.bench.demo import basic_recipes, run_demo, trained_recipes
    from prunus.report.text import table_text, width_here

    torch.set_num_threads(1)  # the networks are too small to share out
    names = trained_recipes() if every else basic_recipes()
    result = run_demo(
        out,
        seeds=seeds,
        names=names,
        workers=min(4, os.cpu_count() or 1),
        say=lambda stage: typer.echo(stage, err=True),
    )
    for net, dense in result.dense.items():
        error = 100 * sum(dense) / len(dense)
        title = (
            f"{task(net).title}: test error in % by density, dense {error:.2f}; without → with "
            f"least squares"
        )
        typer.echo(table_text(_rows(result.table(net)), title=title))
    typer.echo(result.lines)
    for net in result.dense:
        said = f"{task(net).title}. {' '.join(result.headline(net))}"
        typer.echo(textwrap.fill(said, width_here()))
    typer.echo(f"The report: {result.page}")


def _rows(table: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row per recipe: its error without least squares, and with."""
    by_name = {str(row["recipe"]): row for row in table}
    shown = []
    for name, row in by_name.items():
        if name.endswith("+ls"):
            continue
        after = by_name.get(f"{name}+ls")
        cells = {
            key.removeprefix("density "): f"{value:.1f}"
            if after is None
            else f"{value:.1f} → {after[key]:.1f}"
            for key, value in row.items()
            if key != "recipe"
        }
        shown.append({"recipe": name, **cells})
    return shown
