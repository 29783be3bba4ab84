"""`prunus demo`: small networks on the digits, pruned by every basic recipe, as one report."""

from pathlib import Path
from typing import Annotated

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

    import torch
    from rich.console import Console
    from rich.table import Table

    from prunus.bench.data.tasks import task
    from prunus.bench.demo import basic_recipes, run_demo, trained_recipes

    torch.set_num_threads(1)  # the networks are too small to share out
    names = trained_recipes() if every else basic_recipes()
    result = run_demo(out, seeds=seeds, names=names, workers=min(4, os.cpu_count() or 1))
    console = Console()
    for net, dense in result.dense.items():
        rows = {str(row["recipe"]): row for row in result.table(net)}
        columns = [name for name in next(iter(rows.values())) if name != "recipe"]
        error = 100 * sum(dense) / len(dense)
        table = Table(
            title=f"{task(net).title}: test error in % by density, dense {error:.2f}; "
            f"without → with least squares",
            title_justify="left",
        )
        table.add_column("recipe", no_wrap=True)
        for column in columns:
            table.add_column(column.removeprefix("density "), justify="right", no_wrap=True)
        for name, row in rows.items():
            if name.endswith("+ls"):
                continue
            after = rows.get(f"{name}+ls", {})
            cells = [
                f"{row[c]:.1f} → {after[c]:.1f}" if after else f"{row[c]:.1f}" for c in columns
            ]
            table.add_row(name, *cells)
        console.print(table)
    typer.echo(result.lines)
    typer.echo(result.page)
