"""`prunus export`: a pruned network as a file for other software, checked and timed."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(help="`package.module:factory` of the dense network.")],
    pruned: Annotated[Path, typer.Argument(help="A folder that `prunus prune` wrote.")],
    out: Annotated[
        Path, typer.Option(help="The file; for hf and safetensors a new or empty folder.")
    ],
    format: Annotated[str, typer.Option(help="onnx, pt2, hf or safetensors.")] = "onnx",
    data: Annotated[
        str | None,
        typer.Option(help="digits, mnist, …, or an .npz; its first samples run the network."),
    ] = None,
    samples: Annotated[int, typer.Option(help="How many samples run it, and are timed.")] = 8,
    int8: Annotated[
        bool, typer.Option("--int8", help="For onnx: also a file with weights of eight bits.")
    ] = False,
    measure: Annotated[
        bool, typer.Option(help="Time it against the dense network, in torch and onnxruntime.")
    ] = True,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the dense network, as .safetensors.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the named data sets.")
    ] = None,
) -> None:
    """Write a pruned network for other software; run what was written, compare it and time it.

    Example: prunus export prunus.bench.zoo:digits_mlp pruned/ --data digits --out net.onnx
    """
    from prunus.bench import load_data
    from prunus.check import whole
    from prunus.cli.prune import _network
    from prunus.result import load

    whole("--samples", samples, low=1)
    if format != "safetensors" and data is None:
        raise ValueError("--data is missing: a network is run to be written, and to be compared.")
    if not pruned.is_dir():
        raise ValueError(f"PRUNED: {pruned} is no folder that `prunus prune` wrote.")
    example = None
    if data is not None:
        example = load_data(data, data_dir=data_dir).x_test[:samples]
    result = load(pruned, _network(model, None, weights))
    found = result.export(out, format, example=example, measure=measure, int8=int8)
    typer.echo(found.summary())
