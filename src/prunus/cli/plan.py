"""`prunus plan`: how much each layer keeps for a limit on the gap, or on what a metric may lose."""

from typing import Annotated, Any

import typer

from prunus.cli import options as own

__all__ = ["plan"]


def plan(
    model: own.Model,
    limit: Annotated[
        str | None,
        typer.Option(help="ε, such as 0.1 or 10%: a share of the rms output, or of predictions."),
    ] = None,
    drop: own.Drop = None,
    recipe: Annotated[
        str, typer.Option(help="Of --drop: what prunes, a name or a Recipe(...) as Python.")
    ] = "magnitude",
    metric: own.Metric = None,
    evaluate: own.Evaluate = None,
    kind: Annotated[str, typer.Option(help="predicted, mean_square, sup or changed.")] = (
        "predicted"
    ),
    method: Annotated[str, typer.Option(help="magnitude, random or random_rescaled.")] = (
        "magnitude"
    ),
    delta: own.Delta = 0.05,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="The limit is a gap, not a share of rms output.")
    ] = False,
    radius: Annotated[
        float | None, typer.Option(help="Radius of the ball of inputs, for kind sup.")
    ] = None,
    data: own.Data = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Which part of the data plans: train, or test, the default for kind changed, "
            "whose guarantee needs inputs that did not train the network."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples to plan with; all that the plan can use by default.")
    ] = None,
    density: Annotated[
        str | None, typer.Option(help="Keep at most this share of the weights.")
    ] = None,
    factory: own.Factory = None,
    weights: own.Weights = None,
    data_dir: own.DataDir = None,
    seed: own.Seed = 0,
    out: own.PlanOut = None,
) -> None:
    """Print how many weights each layer keeps so that the gap, or a metric, stays within a limit.

    Give --limit, of the gap, or --drop, of a metric.

    Examples:

    prunus plan prunus.bench.zoo:digits_mlp --limit 10% --data digits

    prunus plan prunus.bench.zoo:digits_mlp --limit 0.02 --kind changed --data digits

    prunus plan prunus.bench.zoo:digits_mlp --drop 1% --recipe magnitude+ls --data digits
    """
    from prunus.check import unknown, whole
    from prunus.cli.given import first_samples, read
    from prunus.cli.networks import network
    from prunus.files import write_text
    from prunus.guarantee import plan as run

    if (limit is None) == (drop is None):
        raise ValueError("Give --limit, of the gap, or --drop, of a metric: one of them.")
    if radius is not None and kind != "sup":
        raise ValueError("--radius belongs to --kind sup, which bounds a ball of inputs.")
    chosen = part or ("test" if kind == "changed" else "train")
    if chosen not in ("train", "test"):
        raise unknown("part of the data", chosen, ("train", "test"))
    if samples is not None:
        whole("samples", samples, low=1)
    given = None if data is None else read(data, data_dir)
    net = network(model, factory, weights)
    if drop is not None:
        found = _of_drop(net, drop, recipe, metric, evaluate, given, samples, seed)
    else:
        batches = None
        if given is not None:
            batches = given.needed("--part test") if chosen == "test" else given.train
            batches = batches if samples is None else first_samples(batches, samples)
        found = run(
            net,
            own.number("--limit", limit or ""),
            kind=kind,
            method=method,
            delta=delta,
            relative=not absolute,
            radius=radius,
            data=batches,
            density=None if density is None else own.number("--density", density),
        )
    typer.echo(found.summary())
    if out is not None:
        typer.echo(write_text(out, found.to_json()))


def _of_drop(
    net: Any,
    drop: str,
    recipe: str,
    metric: str | None,
    evaluate: str | None,
    given: Any,
    samples: int | None,
    seed: int,
) -> Any:
    from prunus.cli.given import needed_evaluator
    from prunus.cli.target import target
    from prunus.engine import plan
    from prunus.recipe import parse

    judge = needed_evaluator(given, evaluate, "--drop")
    return plan(
        net,
        target(None, drop=drop, metric=metric or (None if evaluate else "accuracy")),
        recipe=parse(recipe) if "(" in recipe else recipe,
        data=None if given is None else given.limited(samples),
        evaluate=judge,
        seed=seed,
    )
