"""`prunus theory at-init safe-density` and `sweep`: data and networks as they are."""

import json
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.at_init_given import (
    DataSet,
    Densities,
    Out,
    numbers,
    said_plainly,
    save,
    widths,
    with_error,
)
from prunus.cli.options import DataDir

__all__ = ["safe_density", "sweep"]


@said_plainly()
def safe_density(
    data: DataSet = "digits",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "--widths",
            help="Hidden widths of a ReLU network, or package.module:function, a function "
            "(features, classes, seed) -> module, a chain of linear layers.",
        ),
    ] = "100",
    samples: Annotated[int, typer.Option(help="Training points to use; 0 takes all.")] = 300,
    input_noise: Annotated[
        float, typer.Option(help="Noise added to the inputs, in units of their deviation.")
    ] = 0.0,
    pruned_layers: Annotated[
        int | None, typer.Option(help="Only the first so many layers are pruned.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the answer.")] = None,
) -> None:
    """How far a fully connected network may be pruned at random before training.

    Example: prunus theory at-init safe-density --data digits --model 100,100
    """
    import torch

    from prunus.bench.at_init.masks import built, hidden_widths
    from prunus.bench.data.sets import load_data
    from prunus.cli.imports import named_function
    from prunus.files import write_text
    from prunus.rng import generator_for
    from prunus.theory import at_init

    loaded = load_data(data, data_dir=data_dir)
    generator = generator_for(seed, "safe-density")
    x, y = loaded.x_train.flatten(1).double(), loaded.y_train
    if samples < 0:
        raise ValueError(f"`samples` must be >= 0, got {samples}.")
    if samples:
        chosen = torch.randperm(len(x), generator=generator)[:samples]
        fewest = int(torch.bincount(y[chosen], minlength=int(y.max()) + 1).min())
        if fewest < 2:
            raise ValueError(
                f"`samples` of {samples} leave {fewest} of some class, and 2 are needed. Raise it."
            )
        x, y = x[chosen], y[chosen]
    if input_noise < 0:
        raise ValueError(f"`input_noise` must be >= 0, got {input_noise}.")
    x = x - x.mean(0)
    x = x / x.std()
    if input_noise:
        x = x + input_noise * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    if ":" in model:
        make = named_function("--model", model)
        layers = hidden_widths(built(make, x.shape[1], int(y.max()) + 1, seed))
    else:
        layers = widths(model)
    found = at_init.safe_density(x, y, layers, pruned_layers=pruned_layers, generator=generator)
    lines = {
        "safe density (measured rule)": found.density,
        "coverage limit (heuristic)": found.coverage_limit,
        "hard limit (proved, no recommendation)": found.hard_limit,
        "live paths per input and output": found.paths,
        "smallest support of a class": float(found.support.min()),
    }
    for name, value in lines.items():
        typer.echo(f"{name:<40} {value:.4g}")
    typer.echo(found.note)
    if out is not None:
        answer = {
            "data": data,
            "fingerprint": loaded.fingerprint,
            "widths": layers,
            "samples": len(x),
            "input_noise": input_noise,
            "seed": seed,
            "density": found.density,
            "coverage_limit": found.coverage_limit,
            "hard_limit": found.hard_limit,
            "paths": found.paths,
            "support": found.support.tolist(),
            "curve": [found.densities.tolist(), found.accuracy.tolist()],
            "note": found.note,
        }
        typer.echo(write_text(out, json.dumps(answer, indent=1) + "\n"))


@said_plainly()
def sweep(
    data: DataSet = "digits",
    model: Annotated[
        str,
        typer.Option(
            help="Hidden widths of a ReLU network, or package.module:function, a function "
            "(features, classes, seed) -> module."
        ),
    ] = "100",
    methods: Annotated[
        str, typer.Option(help="Of random-init, snip, grasp, synflow.")
    ] = "random-init,snip,grasp,synflow",
    densities: Densities = "0.8,0.5,0.3,0.2,0.1,0.05,0.02",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 10,
    samples: Annotated[int, typer.Option(help="Training points of each seed.")] = 300,
    input_noise: Annotated[
        float, typer.Option(help="Noise added to all inputs, in units of their deviation.")
    ] = 0.0,
    steps: Annotated[int, typer.Option(help="Steps of full-batch Adam.")] = 200,
    learning_rate: Annotated[float, typer.Option(help="Rate of Adam.")] = 1e-2,
    data_dir: DataDir = None,
    out: Out = None,
) -> None:
    """Prune real networks before training by four methods, beside the dense control.

    Example: prunus theory at-init sweep --data digits --input-noise 1 --seeds 5
    """
    from prunus.bench.at_init.stacked import FullBatch
    from prunus.bench.at_init.sweep import sweep as run_sweep
    from prunus.bench.data.sets import load_data
    from prunus.cli.imports import named_function
    from prunus.report.at_init import alignment_figure, sweep_figure

    network = named_function("--model", model) if ":" in model else widths(model)
    found = run_sweep(
        load_data(data, data_dir=data_dir),
        network,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        densities=numbers("densities", densities),
        seeds=seeds,
        samples=samples,
        input_noise=input_noise,
        training=FullBatch(steps=steps, learning_rate=learning_rate),
    )
    typer.echo(
        f"{data}, {samples} training points, input noise {input_noise:g}, model {model}, "
        f"{seeds} seeds"
    )
    typer.echo(
        f"{'method':<30}  {'density':>7}  {'test acc':>15}  {'gain over dense':>16}  "
        f"{'over control':>16}  {'train loss':>10}  {'dead':>5}  {'cut off':>7}  {'alignment':>14}"
    )
    for cell in found.cells:
        align = (
            "" if cell.alignment is None else (f"{cell.alignment_start:.3f} > {cell.alignment:.3f}")
        )
        typer.echo(
            f"{cell.method:<30}  {cell.density:>7.4g}  "
            f"{with_error(cell.accuracy, cell.accuracy_error, ''):>15}  "
            f"{with_error(cell.gain, cell.gain_error, '+') + ('*' if cell.boost else ' '):>16}  "
            f"{with_error(cell.control_gain, cell.control_gain_error, '+'):>16}  "
            f"{cell.train_loss:>10.4f}  {cell.dead_units:>5.2f}  {cell.disconnected:>7.2f}  "
            f"{align:>14}"
        )
    typer.echo(
        "Standard errors in brackets; gains are paired by seed. * gain above 0 at the 5 % level "
        "after Holm's correction.\nThe control is the dense network with smaller first weights: "
        "a gain that it shows too is none of the mask's.\ndead: hidden units without a kept "
        "weight in or out; cut off: seeds with an output that no path reaches;\nalignment: of "
        "first-layer units with class means, before > after training."
    )
    if out is not None:
        from prunus.report.figure import beside

        chart, records = sweep_figure(found)
        save(out, [vars(cell) for cell in found.cells], chart, records)
        if found.cells[0].alignment is not None:
            chart, records = alignment_figure(found)
            save(beside(out, "-alignment"), None, chart, records)
