"""`prunus sensitivity`: what every layer alone costs, and a plan from it."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["sensitivity"]


def sensitivity(
    model: Annotated[
        str, typer.Argument(help="`package.module:factory`, or a saved folder (with --factory).")
    ],
    recipe: Annotated[str, typer.Option(help="Name of a recipe; `prunus list recipes`.")] = (
        "magnitude"
    ),
    density: Annotated[
        list[float], typer.Option(help="Density of the one layer that is pruned; repeat it.")
    ] = [0.5, 0.2, 0.1],  # noqa: B006 typer copies it
    data: Annotated[
        str, typer.Option(help="digits, mnist, …, or an .npz with arrays x and y.")
    ] = "digits",
    samples: Annotated[int, typer.Option(help="Samples to calibrate on.")] = 1000,
    budget: Annotated[
        float | None, typer.Option(help="Plan for this density of the whole network.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the plan, for `prunus prune --plan`.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page of the scan.")] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file of the runs.")] = None,
    factory: Annotated[
        str | None, typer.Option(help="`package.module:factory` of a saved folder.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to load first, as .safetensors.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the named data sets.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random draws.")] = 0,
) -> None:
    """Prune each layer alone and print what the test set says; plan from that.

    Example:

    prunus sensitivity prunus.bench.zoo:digits_mlp --data digits --budget 0.2 --out plan.json
    """
    from prunus.bench import evaluate, load_data
    from prunus.check import whole
    from prunus.cli.prune import _network
    from prunus.engine import sensitivity as run
    from prunus.files import write_text

    whole("samples", samples, low=1)
    if out is not None and budget is None:
        raise ValueError("--out writes a plan, which needs --budget. Give the density it is for.")
    loaded = load_data(data, data_dir=data_dir)
    scan = run(
        _network(model, factory, weights),
        recipe,
        density,
        data=loaded.batches(limit=samples),
        evaluate=lambda m: evaluate(m, loaded),
        seed=seed,
    )
    typer.echo(scan.summary())
    if csv is not None:
        typer.echo(scan.save_csv(csv))
    if report is not None:
        typer.echo(scan.report(report))
    if budget is not None:
        plan = scan.plan(budget)
        typer.echo(plan.summary())
        if out is not None:
            typer.echo(write_text(out, plan.to_json()))
