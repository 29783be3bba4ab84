"""Options that several commands share, typed once, and the numbers in them."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Data", "DataDir", "Delta", "Device", "Drop", "Evaluate", "Factory", "Metric", "Model",
    "PlanOut", "Recipe", "Seed", "Weights", "number",
]  # fmt: skip

Model = Annotated[
    str,
    typer.Argument(
        help="`package.module:factory`; a folder that `prunus prune` wrote (with --factory); "
        "`hf:` and a folder or name of the Hugging Face Hub; or a .pt2 file."
    ),
]
Recipe = Annotated[
    str, typer.Option(help="A name from `prunus list recipes`, or a Recipe(...) as Python.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, mnist, fashion-mnist, cifar10; a file: .npz or .pt with x and y, .npy or .pt "
        "with inputs alone; or `package.module:function` that gives batches, or {train: batches, "
        "test: batches}."
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(envvar="PRUNUS_DATA", help="Folder with the named data sets.")
]
Drop = Annotated[
    str | None,
    typer.Option(
        help="How much worse the metric may be, in its own unit: 1% is 0.01, a point of accuracy."
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(help="What counts: accuracy by default, or a metric that --evaluate gives."),
]
Evaluate = Annotated[
    str | None,
    typer.Option(
        help="`package.module:function`, called as evaluate(model); accuracy on the test part by "
        "default."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Weights to load first: .safetensors, or .pt with a state_dict."),
]
Factory = Annotated[
    str | None,
    typer.Option(help="`package.module:factory` that builds the network of a saved folder."),
]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Delta = Annotated[float, typer.Option(help="Failure probability of a bound or statement.")]
Device = Annotated[str | None, typer.Option(help="Where to compute, such as cuda.")]
PlanOut = Annotated[
    Path | None, typer.Option(help="JSON file for the plan, for `prunus prune --plan`.")
]


def number(option: str, text: str) -> float:
    """A number as it is written on the command line; 20% is 0.2.

    Raises:
        ValueError: it is none.
    """
    from prunus.check import written_number

    try:
        return written_number(text)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None
