"""`prunus export`: a pruned network as a file for other software, checked and timed."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli import options as own

__all__ = ["export"]


def export(
    model: own.Model,
    pruned: Annotated[Path, typer.Argument(help="A folder that `prunus prune` wrote.")],
    out: Annotated[
        Path, typer.Option(help="The file; for hf and safetensors a new or empty folder.")
    ],
    format: Annotated[str, typer.Option(help="onnx, pt2, hf or safetensors.")] = "onnx",
    data: own.Data = None,
    samples: Annotated[int, typer.Option(help="How many samples run it, and are timed.")] = 8,
    int8: Annotated[
        bool, typer.Option("--int8", help="For onnx: also a file with weights of eight bits.")
    ] = False,
    measure: Annotated[
        bool, typer.Option(help="Time it against the dense network, in torch and onnxruntime.")
    ] = True,
    weights: own.Weights = None,
    data_dir: own.DataDir = None,
) -> None:
    """Write a pruned network for other software; run what was written, compare it and time it.

    Example: prunus export prunus.bench.zoo:digits_mlp pruned/ --data digits --out net.onnx
    """
    from prunus.check import whole
    from prunus.cli.given import read
    from prunus.cli.networks import network
    from prunus.result import load

    whole("--samples", samples, low=1)
    if format != "safetensors" and data is None:
        raise ValueError("--data is missing: a network is run to be written, and to be compared.")
    if not pruned.is_dir():
        raise ValueError(f"PRUNED: {pruned} is no folder that `prunus prune` wrote.")
    example = None if data is None else read(data, data_dir).first(samples, fresh=True)
    result = load(pruned, network(model, None, weights))
    found = result.export(out, format, example=example, measure=measure, int8=int8)
    typer.echo(found.summary())
