"""`prunus certify`: what is guaranteed of a pruned network."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli import options as own

__all__ = ["certify"]


def certify(
    model: own.Model,
    pruned: Annotated[
        str,
        typer.Argument(
            help="A folder that `prunus prune` wrote, a .safetensors file of the pruned weights, "
            "or `package.module:factory`."
        ),
    ],
    data: own.Data = None,
    radius: Annotated[float | None, typer.Option(help="Radius of the ball of inputs.")] = None,
    delta: own.Delta = 0.05,
    calibration: Annotated[
        int | None,
        typer.Option(
            help="So many of the data's first training samples calibrate statements about single "
            "layers."
        ),
    ] = None,
    weights: own.Weights = None,
    data_dir: own.DataDir = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the certificate.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page for the certificate.")] = None,
) -> None:
    """Print bounds, predictions and measurements of the gap between two networks.

    Example: prunus certify prunus.bench.zoo:digits_mlp pruned/ --data digits --calibration 128
    """
    import copy
    import warnings

    from prunus.check import whole
    from prunus.cli.given import read
    from prunus.cli.networks import load_weights, network
    from prunus.files import write_text
    from prunus.guarantee import certify as run
    from prunus.result import load
    from prunus.theory.gap import VacuousWarning

    dense = network(model, None, weights)
    if ":" in pruned:
        other = network(pruned, name="PRUNED")
    elif pruned and Path(pruned).is_dir():
        other = load(pruned, copy.deepcopy(dense))
    elif not Path(pruned).is_file():
        raise ValueError(
            f"PRUNED: {pruned} is no folder that `prunus prune` wrote, no .safetensors file and no "
            f"package.module:factory."
        )
    else:
        other = copy.deepcopy(dense)
        load_weights(other, Path(pruned), "PRUNED")
    batches = seen = None
    if calibration is not None:
        whole("calibration", calibration, low=1)
        if data is None:
            raise ValueError("--calibration takes training samples of --data. Name the data.")
    if data is not None:
        given = read(data, data_dir)
        batches = given.needed("--data")
        seen = None if calibration is None else given.limited(calibration)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VacuousWarning)  # the summary says it in words
        found = run(dense, other, data=batches, radius=radius, delta=delta, calibration=seen)
    typer.echo(found.summary())
    if out is not None:
        typer.echo(write_text(out, found.to_json() + "\n"))
    if report is not None:
        from prunus.report.certificate import write_certificate

        typer.echo(write_certificate(found, report))
