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
        str | None, typer.Option(help="digits, mnist, …, or an .npz; its training part plans.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Training samples to plan with.")] = 512,
    factory: Annotated[
        str | None, typer.Option(help="`package.module:factory` of a saved folder.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to load first, as .safetensors.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the named data sets.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the plan.")] = None,
) -> None:
    """Print how many weights each layer keeps so that the gap stays within the limit.

    Example: prunus plan prunus.bench.zoo:digits_mlp --limit 0.1 --data digits
    """
    import json
    import math

    from prunus.bench import load_data
    from prunus.cli.prune import _network
    from prunus.files import write_text
    from prunus.guarantee import plan as run

    batches = None
    if data is not None:
        batches = load_data(data, data_dir=data_dir).batches(limit=samples)
    found = run(
        _network(model, factory, weights),
        limit,
        kind=kind,
        method=method,
        delta=delta,
        relative=not absolute,
        radius=radius,
        data=batches,
    )
    typer.echo(found.summary())
    if out is not None:
        facts = {
            "kept": dict(found.kept),
            "density": found.density,
            "limit": found.limit,
            "kind": found.kind,
            "value": found.value if math.isfinite(found.value) else None,
            "feasible": found.feasible,
            "notes": list(found.notes),
        }
        typer.echo(write_text(out, json.dumps(facts, indent=1) + "\n"))
