"""`prunus sensitivity`: what every layer alone costs, and a plan from it."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli import options as own

__all__ = ["sensitivity"]

DENSITIES = ("0.5", "0.2", "0.1")


def sensitivity(
    model: own.Model,
    recipe: own.Recipe = "magnitude",
    density: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Density of the one layer that is pruned; repeat it. {', '.join(DENSITIES)} by "
            "default."
        ),
    ] = None,
    data: own.Data = "digits",
    evaluate: own.Evaluate = None,
    metric: own.Metric = None,
    samples: Annotated[int, typer.Option(help="Samples to calibrate on.")] = 1000,
    budget: Annotated[
        str | None, typer.Option(help="Plan for this density of the whole network.")
    ] = None,
    drop: own.Drop = None,
    out: own.PlanOut = None,
    report: Annotated[Path | None, typer.Option(help="HTML page of the scan.")] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file of the runs.")] = None,
    factory: own.Factory = None,
    weights: own.Weights = None,
    data_dir: own.DataDir = None,
    seed: own.Seed = 0,
) -> None:
    """Prune each layer alone and print what the test set says; plan from that.

    A plan by --budget or --drop assumes that the layers' losses add up.

    Example:

    prunus sensitivity prunus.bench.zoo:digits_mlp --data digits --budget 20% --out plan.json
    """
    from prunus.check import whole
    from prunus.cli.given import needed_evaluator, read
    from prunus.cli.networks import network
    from prunus.cli.target import target
    from prunus.engine import sensitivity as run
    from prunus.files import write_text
    from prunus.recipe import parse

    whole("samples", samples, low=1)
    if budget is not None and drop is not None:
        raise ValueError("Give --budget or --drop, not both.")
    if out is not None and budget is None and drop is None:
        raise ValueError("--out writes a plan, which needs --budget or --drop.")
    given = None if data is None else read(data, data_dir)
    judge = needed_evaluator(given, evaluate, "The scan")
    scan = run(
        network(model, factory, weights),
        parse(recipe) if "(" in recipe else recipe,
        [own.number("--density", text) for text in density or DENSITIES],
        data=None if given is None else given.limited(samples),
        evaluate=judge,
        metric=metric,
        seed=seed,
    )
    typer.echo(scan.summary())
    if csv is not None:
        typer.echo(scan.save_csv(csv))
    if report is not None:
        typer.echo(scan.report(report))
    asked = target(None if budget is None else [budget], drop=drop)
    if asked is not None:
        plan = scan.plan(asked)
        typer.echo(plan.summary())
        if out is not None:
            typer.echo(write_text(out, plan.to_json()))
