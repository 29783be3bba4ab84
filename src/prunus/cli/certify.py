"""`prunus certify`: what is guaranteed of a pruned network."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["certify"]


def certify(
    model: Annotated[str, typer.Argument(help="`package.module:factory` of the dense network.")],
    pruned: Annotated[
        str,
        typer.Argument(
            help="A folder that `prunus prune` wrote, a .safetensors file of the pruned weights, "
            "or `package.module:factory`."
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="digits, mnist, …, or an .npz; its test part is fresh data.")
    ] = None,
    radius: Annotated[float | None, typer.Option(help="Radius of the ball of inputs.")] = None,
    delta: Annotated[float, typer.Option(help="Failure probability of each statement.")] = 0.05,
    calibration: Annotated[
        int | None,
        typer.Option(
            help="So many of the data's first training samples calibrate statements about single "
            "layers."
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the dense network, as .safetensors.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the named data sets.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the certificate.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page for the certificate.")] = None,
) -> None:
    """Print bounds, predictions and measurements of the gap between two networks.

    Example: prunus certify prunus.bench.zoo:digits_mlp pruned/ --data digits --calibration 128
    """
    import copy
    import warnings

    from prunus.bench import load_data
    from prunus.check import whole
    from prunus.cli.prune import _load_weights, _network
    from prunus.files import write_text
    from prunus.guarantee import certify as run
    from prunus.result import load
    from prunus.theory.gap import VacuousWarning

    dense = _network(model, None, weights)
    if ":" in pruned:
        other = _network(pruned, None, None)
    elif Path(pruned).is_dir():
        other = load(pruned, copy.deepcopy(dense))
    elif not Path(pruned).is_file():
        raise ValueError(
            f"PRUNED: {pruned} is no folder that `prunus prune` wrote, no .safetensors file and no "
            f"package.module:factory."
        )
    else:
        other = copy.deepcopy(dense)
        _load_weights(other, Path(pruned))
    batches = seen = None
    if calibration is not None:
        whole("calibration", calibration, low=1)
        if data is None:
            raise ValueError("--calibration takes training samples of --data. Name the data.")
    if data is not None:
        loaded = load_data(data, data_dir=data_dir)
        batches = [loaded.x_test]
        seen = None if calibration is None else [loaded.x_train[:calibration]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VacuousWarning)  # the summary says it in words
        found = run(dense, other, data=batches, radius=radius, delta=delta, calibration=seen)
    typer.echo(found.summary())
    if out is not None:
        typer.echo(write_text(out, found.to_json() + "\n"))
    if report is not None:
        from prunus.report.certificate import write_certificate

        typer.echo(write_certificate(found, report))
