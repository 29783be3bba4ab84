"""`prunus plan`: how many weights each layer may lose for a limit on the gap."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["plan"]


def plan(
    model: Annotated[
        str, typer.Argument(help="`package.module:factory`, or a saved folder (with --factory).")
    ],
    limit: Annotated[float, typer.Option(help="ε: a share of the rms output, or of predictions.")],
    kind: Annotated[str, typer.Option(help="predicted, mean_square, sup or changed.")] = (
        "predicted"
    ),
    method: Annotated[str, typer.Option(help="magnitude, random or random_rescaled.")] = (
        "magnitude"
    ),
    delta: Annotated[float, typer.Option(help="Failure probability over random masks.")] = 0.05,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="The limit is a gap, not a share of rms output.")
    ] = False,
    radius: Annotated[
        float | None, typer.Option(help="Radius of the ball of inputs, for kind sup.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, mnist, …, or an .npz with arrays x and y.")
    ] = None,
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
        float | None, typer.Option(help="Keep at most this share of the weights.")
    ] = None,
    factory: Annotated[
        str | None, typer.Option(help="`package.module:factory` of a saved folder.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to load first, as .safetensors.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the named data sets.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the plan, for `prunus prune --plan`.")
    ] = None,
) -> None:
    """Print how many weights each layer keeps so that the gap stays within the limit.

    Examples:

    prunus plan prunus.bench.zoo:digits_mlp --limit 0.1 --data digits

    prunus plan prunus.bench.zoo:digits_mlp --limit 0.02 --kind changed --data digits
    """
    from prunus.bench import load_data
    from prunus.check import unknown, whole
    from prunus.cli.prune import _network
    from prunus.files import write_text
    from prunus.guarantee import plan as run

    chosen = part or ("test" if kind == "changed" else "train")
    if chosen not in ("train", "test"):
        raise unknown("part of the data", chosen, ("train", "test"))
    if samples is not None:
        whole("samples", samples, low=1)
    batches = None
    if data is not None:
        loaded = load_data(data, data_dir=data_dir)
        inputs = loaded.x_test if chosen == "test" else loaded.x_train
        batches = [inputs[:samples]]
    found = run(
        _network(model, factory, weights),
        limit,
        kind=kind,
        method=method,
        delta=delta,
        relative=not absolute,
        radius=radius,
        data=batches,
        density=density,
    )
    typer.echo(found.summary())
    if out is not None:
        typer.echo(write_text(out, found.to_json()))
